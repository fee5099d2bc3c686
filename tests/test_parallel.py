"""Two processes that share a model: DistributedDataParallel averages, whatever the strategy; sharded models."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import CASES, ONLINE, SHARDED, STRATEGIES

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def found():
    """What tests/ranks.py printed: of each strategy and case the error, relative in norm, or what was raised."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.ranks", str(rank)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [rank.communicate(timeout=300) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert all(rank.returncode == 0 for rank in ranks), said[0][1] + said[1][1]
    return json.loads(said[0][0])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_gradient_is_the_mean_of_both_processes(found, strategy, case):
    if strategy in ONLINE and case in ("packed", "function", "function, unused"):
        pytest.skip("refused: these strategies want a module, and x padded")
    assert found[strategy][case] <= 1e-12


@pytest.mark.parametrize("kind", SHARDED)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_sharded_model_is_right_or_refused_in_a_sentence(found, strategy, kind):
    got = found[strategy][kind]
    if strategy == "exact":
        assert got <= 1e-12
    else:
        assert got.startswith(f"ValueError: the model is sharded ({kind}): its gradients exist only within")


@pytest.mark.parametrize("strategy", [s for s in STRATEGIES if s != "exact"])
def test_mixed_precision_of_the_wrapper_is_refused_in_a_sentence(found, strategy):
    assert found[strategy]["mixed precision"].startswith("ValueError: DistributedDataParallel with mixed_precision")
