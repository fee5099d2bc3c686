"""The exact gradient over a million steps: peak memory and time a step, each case in a fresh process.

    .venv/bin/python benchmarks/memory.py [--steps 1000000] [--memory 24MB] [--cells RNN GRU LSTM] [--inputs 16]

H 256, B 1, one layer, float32, one thread. Cases: `bptt.Checkpointed` over all steps; the full tape of the same kernel,
plain torch.nn, torch.utils.checkpoint by hand (chunks of √T steps) and, where Equinox is installed (extra `bench`), its
checkpointed scan (√T checkpoints, compiled before the measurement) at a T that fits, their memory extrapolated in
proportion to T (√T for the last two) and marked ~. The peak is the process's (VmHWM, reset after a warm-up that runs every
code path), above parameters, inputs and interpreter.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from importlib.util import find_spec

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


def equinox_gradient(model, cell, x, y):
    """The same weights in JAX, under Equinox's checkpointed scan: a compiled function without arguments."""
    import equinox
    import jax
    from jax import numpy as jnp
    from peers import jax_advance

    jax.config.update("jax_platforms", "cpu")
    advance = jax_advance(cell, HIDDEN)
    weights = [jnp.asarray(p.detach().numpy()) for p in model.parameters()]
    placed = weights, jnp.asarray(x.numpy()), jnp.asarray(y.numpy())

    def loss(weights, x, y):
        w_ih, w_hh, b_ih, b_hh = weights

        def body(carry, here):
            state, total = carry
            state = advance(state, here[0] @ w_ih.T + b_ih, w_hh, b_hh)
            return (state, total + ((state[0] - here[1]) ** 2).sum()), None

        zeros = jnp.zeros((1, HIDDEN), x.dtype)
        start = (zeros, zeros), jnp.zeros((), x.dtype)
        return equinox.internal.scan(body, start, (x, y), kind="checkpointed")[0][1]

    compiled = jax.jit(jax.grad(loss)).lower(*placed).compile()
    return lambda: jax.block_until_ready(compiled(*placed))


def check_equal(torch, model, found):
    """Raises where a peer's gradients are not those of torch's: its figures would mean nothing."""
    for (name, p), other in zip(model.named_parameters(), found, strict=True):
        error = (p.grad - torch.from_numpy(other.__array__().copy())).norm() / p.grad.norm()
        if not error <= 1e-3:
            raise SystemExit(f"Equinox's gradient of {name} differs by {error:.1e} of its norm")


def case(name, cell, steps, inputs, memory):
    """Run one case in this process; its figures."""
    import torch

    import bptt

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = getattr(bptt if name in ("checkpointed", "full tape") else torch.nn, cell)(inputs, HIDDEN)
    x, y = torch.randn(steps, 1, inputs), torch.zeros(steps, 1, 1)

    def run(n, budget):
        if name == "checkpointed":
            return bptt.backward(model, x[:n], y[:n], squared, bptt.Checkpointed(budget)).plan
        if name == "by hand":
            return by_hand(torch, model, x[:n], y[:n])
        squared(model(x[:n])[0], y[:n]).backward()
        return None

    least = bptt.Checkpointed("1GB").plan(model, x[:512], y[:512], squared).least
    run(512, int(1.05 * least))
    if name == "equinox":
        check_equal(torch, model, equinox_gradient(model, cell, x[:512], y[:512])())
        compiled = equinox_gradient(model, cell, x, y)
        run = lambda n, budget: compiled() and None  # noqa: E731
    model.zero_grad()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as reset:
        reset.write("5")
    before, start = status("VmRSS"), time.perf_counter()
    plan = run(steps, memory)
    seconds = time.perf_counter() - start
    return {"peak": status("VmHWM") - before, "step": seconds / steps, "plan": plan and str(plan), "T": steps}


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
        rows = [
            (f"bptt.Checkpointed({options.memory!r})", ours, 1.0),
            ("full tape, same kernel", full, steps / fits),
            ("torch.nn, plain", ask("torch", cell, fits, options.inputs, options.memory), steps / fits),
            (
                "torch.utils.checkpoint by hand",
                ask("by hand", cell, fits, options.inputs, options.memory),
                (steps / fits) ** 0.5,
            ),
        ]
        if find_spec("equinox"):
            scan = ask("equinox", cell, fits, options.inputs, options.memory)
            rows.append(("Equinox's checkpointed scan", scan, (steps / fits) ** 0.5))
        print(f"{cell}: {ours['plan']}")
        for name, found, factor in rows:
            peak = f"{found['peak'] / 1e6:9.1f} MB at T {found['T']:>9,}"
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
