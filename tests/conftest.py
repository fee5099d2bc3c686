"""Settings that every test shares."""

import os

# Before torch is loaded: its threads wait by spinning, and beside other processes the tests took many times as long.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import pytest
import torch
from hypothesis import HealthCheck, settings

# Fresh random inputs at every run; a failure prints the seed and the sizes that made it.
settings.register_profile("fast", max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("quick", max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
settings.register_profile("fuzz", max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


@pytest.fixture(autouse=True)
def _two_threads():
    torch.set_num_threads(2)
