"""One training step of a layer, torch's operators against the fused kernel, interleaved in one process.

    .venv/bin/python benchmarks/layers.py [SECONDS A POINT]

T 256, D = H, float32, 2 threads, gradients to the weights and biases. Prints no ratio where the gradients differ.
"""

import sys
import time

import torch

import bptt

STEPS = 256


def training_step(layer, backend, x, d_outputs):
    """The gradients of one step on that backend."""
    layer.backend = backend
    return torch.autograd.grad(layer(x)[0], list(layer.parameters()), d_outputs)


def main(seconds):
    torch.set_num_threads(2)
    for name in ("RNN", "GRU", "LSTM"):
        for batch, hidden in ((1, 128), (16, 64), (16, 256), (64, 128), (64, 256)):
            layer = getattr(bptt, name)(hidden, hidden)
            x, d_outputs = torch.randn(STEPS, batch, hidden), torch.randn(STEPS, batch, hidden)
            pairs = zip(*(training_step(layer, b, x, d_outputs) for b in ("aten", "cpu")), strict=True)
            error = max(((a - b).norm() / a.norm()).item() for a, b in pairs)
            times = {"aten": [], "cpu": []}
            end = time.perf_counter() + seconds
            while time.perf_counter() < end or len(times["cpu"]) < 3:
                for backend, taken in times.items():
                    start = time.perf_counter()
                    training_step(layer, backend, x, d_outputs)
                    taken.append(time.perf_counter() - start)
            torch_ms, ours_ms = (1e3 * sorted(t)[len(t) // 2] for t in times.values())
            ratio = f"{torch_ms / ours_ms:5.2f}x" if error < 1e-5 else f"gradients differ by {error:.1e}"
            print(
                f"{name:5} B {batch:3} H {hidden:4}  torch {torch_ms:8.2f} ms  bptt {ours_ms:8.2f} ms  {ratio}",
                flush=True,
            )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0)
