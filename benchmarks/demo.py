"""What the fused kernel makes of `make demo`: characters a second of its training, against torch's own operators.

    .venv/bin/python benchmarks/demo.py [ROUNDS]

The demo's own training (`bptt train` with its defaults), a few seconds at a time on each backend in turn.
"""

import os
import sys
import time
from statistics import median

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the command line has it; before torch is loaded

import torch

from bptt.options import TextOptions
from bptt.tasks import make_task
from bptt.train.distributed import Processes
from bptt.train.training import Training

UPDATES = 12


def main(rounds):
    options = TextOptions()
    training = Training(options, make_task(options), Processes(0, 1, torch.device("cpu")))
    layers = [module for module in training.model.modules() if hasattr(module, "backend")]
    rates = {"aten": [], "auto": []}
    for _ in range(rounds):
        for backend, found in rates.items():
            for layer in layers:
                layer.backend = backend
            training.update()
            start = time.perf_counter()
            for _ in range(UPDATES):
                training.update()
            found.append(UPDATES * options.batch * options.chunk / (time.perf_counter() - start))
    aten, ours = median(rates["aten"]), median(rates["auto"])
    print(f"torch's operators {aten:,.0f} characters/s, bptt {ours:,.0f} characters/s: {ours / aten:.2f}x")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
