"""Learning on a stream with an update at every step: RTRL and SnAp-1 against truncated BPTT, on the same stream.

The task: say the input of LAG steps ago. Inputs are ±1, so whoever says 0 has a squared error of 1. Printed for each
strategy: the error over the last tenth of the stream, and milliseconds a step, medians over seeds.

    python benchmarks/online.py [LAG]
"""

import statistics
import sys
import time

import torch

import bptt
from bptt.network import Linear, Network

UNITS, BATCH, STEPS, SEEDS = 16, 4, 3000, 3
STRATEGIES = {
    "RTRL()": bptt.RTRL(),
    "SnAp1()": bptt.SnAp1(),
    "Truncated(1, 1)": bptt.Truncated(1, 1),
    "Truncated(1, 4)": bptt.Truncated(1, 4),
    "Truncated(1, 16)": bptt.Truncated(1, 16),
}


def squared(outputs, targets):
    return ((outputs - targets) ** 2).sum()


def learn(strategy, lag, seed):
    """(error of the last tenth, seconds a step)."""
    torch.manual_seed(seed)
    model = Network(bptt.GRU(1, UNITS), UNITS, 1, Linear())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    stream = torch.sign(torch.randn(STEPS, BATCH, 1))
    result, errors = None, []
    begin = time.perf_counter()
    for t in range(lag, STEPS):
        optimizer.zero_grad()
        result = bptt.backward(model, stream[t : t + 1], stream[t - lag : t - lag + 1], squared, strategy, result)
        optimizer.step()
        errors.append(float(result.loss) / BATCH)
    seconds = (time.perf_counter() - begin) / len(errors)
    return statistics.mean(errors[-STEPS // 10 :]), seconds


def main(lag):
    torch.set_num_threads(1)
    print(f"say the input of {lag} steps ago; GRU, {UNITS} units, batch {BATCH}, {STEPS} updates, {SEEDS} seeds")
    for name, strategy in STRATEGIES.items():
        errors, seconds = zip(*(learn(strategy, lag, seed) for seed in range(SEEDS)), strict=True)
        print(
            f"{name:17} error {statistics.median(errors):.3f}   {1e3 * statistics.median(seconds):5.2f} ms a step",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
