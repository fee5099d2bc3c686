"""The exact gradient over a million steps: peak memory and time a step, each case in a fresh process.

    .venv/bin/python benchmarks/memory.py [--steps 1000000] [--memory 24MB] [--cells RNN GRU LSTM] [--inputs 16]

H 256, B 1, one layer, float32, one thread. Cases: `bptt.Checkpointed` over all steps; the full tape of the same kernel,
plain torch.nn, and torch.utils.checkpoint by hand (chunks of √T steps) at a T that fits, their memory extrapolated in
proportion to T (√T for the last) and marked ~. The peak is the process's (VmHWM, reset after a warm-up that runs every
code path), above parameters, inputs and interpreter. Equinox's checkpointed scan is not among them yet.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time

FITS = 20_000  # steps at which full tapes are measured
HIDDEN = 256


def status(key):
    """A figure of this process in bytes, from the kernel."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))


def squared(outputs, targets):
    return ((outputs - targets) ** 2).sum()


def by_hand(torch, model, x, y):
    """What users write: torch.utils.checkpoint around chunks of √T steps."""
    from torch.utils.checkpoint import checkpoint

    length = round(len(x) ** 0.5)

    def chunk(state, a):
        outputs, state = model(x[a : a + length], state)
        return squared(outputs, y[a : a + length]), state

    total, state = 0.0, None
    for a in range(0, len(x), length):
        loss, state = checkpoint(chunk, state, a, use_reentrant=False)
        total = total + loss
    total.backward()


def case(name, cell, steps, inputs, memory):
    """Run one case in this process; its figures."""
    import torch

    import bptt

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = getattr(bptt if name in ("checkpointed", "full tape") else torch.nn, cell)(inputs, HIDDEN)
    x, y = torch.randn(steps, 1, inputs), torch.zeros(steps, 1, 1)
    plan = None

    def run(n, budget):
        if name == "checkpointed":
            return bptt.backward(model, x[:n], y[:n], squared, bptt.Checkpointed(budget)).plan
        if name == "by hand":
            return by_hand(torch, model, x[:n], y[:n])
        squared(model(x[:n])[0], y[:n]).backward()
        return None

    least = bptt.Checkpointed("1GB").plan(model, x[:512], y[:512], squared).least
    run(512, int(1.05 * least))
    model.zero_grad()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before, start = status("VmRSS"), time.perf_counter()
    plan = run(steps, memory)
    seconds = time.perf_counter() - start
    return {"peak": status("VmHWM") - before, "step": seconds / steps, "plan": plan and str(plan)}


def ask(*arguments):
    """The figures of a case, from a fresh process."""
    command = [sys.executable, __file__, "--case", json.dumps(arguments)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def main(options):
    steps, fits = options.steps, min(options.steps, FITS)
    print(
        f"T {steps:,}, H {HIDDEN}, B 1, D {options.inputs}, float32, one thread; peak above the parameters and inputs\n"
    )
    for cell in options.cells:
        ours = ask("checkpointed", cell, steps, options.inputs, options.memory)
        full = ask("full tape", cell, fits, options.inputs, options.memory)
        torchs = ask("torch", cell, fits, options.inputs, options.memory)
        hand = ask("by hand", cell, fits, options.inputs, options.memory)
        print(f"{cell}: {ours['plan']}")
        rows = [
            (f"bptt.Checkpointed({options.memory!r})", ours, steps, 1.0),
            ("full tape, same kernel", full, fits, steps / fits),
            ("torch.nn, plain", torchs, fits, steps / fits),
            ("torch.utils.checkpoint by hand", hand, fits, (steps / fits) ** 0.5),
        ]
        for name, found, measured, factor in rows:
            peak = f"{found['peak'] / 1e6:9.1f} MB at T {measured:>9,}"
            more = f"  ~{found['peak'] * factor / 1e6:9,.0f} MB at T {steps:,}" if factor > 1 else ""
            print(
                f"  {name:36} {found['step'] * 1e6:7.1f} µs a step ({found['step'] / full['step']:.2f}x) {peak}{more}"
            )
        print(flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--memory", default="24MB")
    parser.add_argument("--cells", nargs="+", default=["RNN", "GRU", "LSTM"])
    parser.add_argument("--inputs", type=int, default=16)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.case:
        print(json.dumps(case(*json.loads(given.case))))
    else:
        main(given)
