"""What `bptt.gradient_map` costs: time against the layer's own backward pass, and memory at T 1000, H 256.

python benchmarks/gradient_map.py
"""

import subprocess
import sys
import time
from pathlib import Path

import torch

import bptt

STEPS, UNITS, BATCH, ROUNDS = 100, 128, 64, 24


def seconds(call) -> float:
    """Of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(name: str) -> None:
    """The map of one sample against a backward pass of the whole batch, in turns; the best and the median of each."""
    layer, x = getattr(bptt, name)(UNITS, UNITS), torch.randn(STEPS, BATCH, UNITS, requires_grad=True)
    outputs = layer(x)[0]
    given = torch.randn_like(outputs)
    pairs = []
    for _ in range(ROUNDS):
        back = seconds(lambda: torch.autograd.grad(outputs, [x, *layer.parameters()], given, retain_graph=True))
        shown = seconds(lambda: bptt.gradient_map(layer, x, grad_outputs=given, samples=[3]))
        pairs.append((back, shown))
    back, shown = (sorted(column) for column in zip(*pairs, strict=True))
    middle = ROUNDS // 2
    print(
        f"{name:5} backward {back[0] * 1e3:6.1f} ms (median {back[middle] * 1e3:.1f}), map {shown[0] * 1e3:6.1f} ms "
        f"(median {shown[middle] * 1e3:.1f}), ratio {shown[0] / back[0]:.2f} (median {shown[middle] / back[middle]:.2f})"
    )


def memory(name: str, dtype: torch.dtype) -> None:
    """Growth of the process's peak while the map of one sample is made (Linux)."""
    layer, x = getattr(bptt, name)(256, 256, dtype=dtype), torch.randn(1000, 1, 256, dtype=dtype)
    given = torch.randn_like(x)
    bptt.gradient_map(layer, x[:10], grad_outputs=given[:10])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = peak()
    bptt.gradient_map(layer, x, grad_outputs=given)
    print(f"{name:5} {dtype}: T 1000, H 256, +{peak() - before:.0f} MB")


def peak() -> float:
    """MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        memory(sys.argv[1], getattr(torch, sys.argv[2]))
        sys.exit()
    print(f"map of one sample, T {STEPS}, H {UNITS}, batch {BATCH}, {torch.get_num_threads()} threads")
    for cell in ("RNN", "GRU", "LSTM"):
        compare(cell)
    for number in ("float32", "float64"):
        for cell in ("RNN", "GRU", "LSTM"):  # each in a process of its own, with nothing to reuse
            subprocess.run([sys.executable, __file__, cell, number], check=True)
