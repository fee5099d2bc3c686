"""What `bptt.watch` costs: the time it adds to a training step, in the model's own backward passes.

    .venv/bin/python benchmarks/watch.py [THREADS]

Rounds without and with `watch` take turns, and the median of their ratios is printed; first it is checked that the
gradients are the same bit for bit. Exits with 1 if a layer costs more than 1.25 backward passes.
"""

import statistics
import sys
import time

import torch
from torch import nn

import bptt

LIMIT, ROUNDS = 1.25, 9
STEPS, BATCH, WIDTH = 100, 64, 128


def step(model, x, watching):
    """Seconds of forward, of backward, and of the whole."""
    model.zero_grad()
    flow = bptt.watch(model)
    begin = time.perf_counter()
    if watching:
        flow.__enter__()
    loss = model(x)[0].square().sum()
    forward = time.perf_counter()
    loss.backward()
    backward = time.perf_counter()
    if watching:
        flow.__exit__(None, None, None)
    return forward - begin, backward - forward, time.perf_counter() - begin


def cost(model):
    """(seconds of backward, seconds added, their ratio), medians."""
    x = torch.randn(STEPS, BATCH, WIDTH)
    gradients = []
    for watching in (False, True):
        step(model, x, watching)
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)), "watch changed a gradient"
    backward, added = [], []
    for _ in range(ROUNDS):
        plain, watched = step(model, x, False), step(model, x, True)
        backward.append(plain[1])
        added.append(watched[2] - plain[2])
    ratios = [a / b for a, b in zip(added, backward, strict=True)]
    return statistics.median(backward), statistics.median(added), statistics.median(ratios)


def main(threads):
    torch.set_num_threads(threads)
    print(f"T {STEPS}, batch {BATCH}, D = H = {WIDTH}, float32, {threads} thread(s)")
    worst = 0.0
    for maker in (nn.RNN, nn.GRU, nn.LSTM, bptt.RNN, bptt.GRU, bptt.LSTM):
        for layers in (1, 2):
            backward, added, ratio = cost(maker(WIDTH, WIDTH, layers))
            home = maker.__module__.split(".")[0]
            print(f"{home + '.' + maker.__name__:12}{layers} layer(s)  backward {1e3 * backward:6.1f} ms"
                  f"  watch adds {1e3 * added:6.1f} ms = {ratio:.2f} backward passes", flush=True)  # fmt: skip
            worst = max(worst, ratio)
    return 0 if worst <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 1))
