"""The frameworks that speed.py compares, each served from a process of its own: torch.nn, bptt, JAX's lax.scan under jit.

A case is a dictionary: cell, batch, hidden, steps, and optionally dtype ("float32"), layers (1), bidirectional, autocast,
lengths (steps of each sequence: the batch is packed), threads (2), inference (outputs alone). Every framework draws
the same inputs and weights.
"""

import resource
import time
from contextlib import nullcontext

import numpy as np

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


def operations(case):
    """Additions and multiplications in the products of a training step with D = H: 2·B·T·G·H·(2D + 3H)."""
    rows = sum(case["lengths"]) if case.get("lengths") else case["batch"] * case["steps"]
    return 2 * rows * GATES[case["cell"]] * case["hidden"] * 5 * case["hidden"]


def drawn(case):
    """x, the gradient of the outputs, and the weights in torch.nn's order, by layer and direction."""
    rng = np.random.default_rng(0)
    T, B, H, G = case["steps"], case["batch"], case["hidden"], GATES[case["cell"]]
    directions = 2 if case.get("bidirectional") else 1
    dtype = case.get("dtype", "float32")

    def normal(*shape):
        return rng.standard_normal(shape).astype(dtype)

    def uniform(*shape):
        return rng.uniform(-(H**-0.5), H**-0.5, shape).astype(dtype)

    x, d_outputs = normal(T, B, H), normal(T, B, directions * H)
    weights = []
    for layer in range(case.get("layers", 1)):
        for _ in range(directions):
            inputs = H if layer == 0 else directions * H
            weights += [uniform(G * H, inputs), uniform(G * H, H), uniform(G * H), uniform(G * H)]
    return x, d_outputs, weights


def torch_step(case, library):
    """The training step of torch.nn's or bptt's layer, as a function without arguments that returns the gradients."""
    import torch

    torch.set_num_threads(case.get("threads", 2))
    if library == "bptt":
        import bptt as layers
    else:
        layers = torch.nn
    x, d_outputs, weights = (torch.from_numpy(a) if isinstance(a, np.ndarray) else a for a in drawn(case))
    made = getattr(layers, case["cell"])(
        case["hidden"],
        case["hidden"],
        case.get("layers", 1),
        bidirectional=case.get("bidirectional", False),
        dtype=x.dtype,
    )
    parameters = list(made.parameters())
    with torch.no_grad():
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.copy_(torch.from_numpy(weight))
    if case.get("lengths"):
        pack = torch.nn.utils.rnn.pack_padded_sequence
        x = pack(x, case["lengths"], enforce_sorted=True)
        d_outputs = pack(d_outputs, case["lengths"], enforce_sorted=True).data

    def infer():
        with torch.inference_mode():
            return (made(x)[0],)

    def step():
        with torch.autocast("cpu", dtype=torch.bfloat16) if case.get("autocast") else nullcontext():
            y, _ = made(x)
        y = y.data if case.get("lengths") else y
        return torch.autograd.grad(y, parameters, d_outputs.to(y.dtype))

    return infer if case.get("inference") else step


def jax_advance(cell, H):
    """One step of a cell in JAX: advance((h, c), W_ih x(t) + b_ih, W_hh, b_hh) → (h, c). RNN and GRU carry c along."""
    import jax
    from jax import numpy as jnp

    def advance(state, zx, w_hh, b_hh):
        h, c = state
        zh = h @ w_hh.T + b_hh
        if cell == "RNN":
            h = jnp.tanh(zx + zh)
        elif cell == "GRU":
            r, u = jnp.split(jax.nn.sigmoid(zx[:, : 2 * H] + zh[:, : 2 * H]), 2, axis=1)
            n = jnp.tanh(zx[:, 2 * H :] + r * zh[:, 2 * H :])
            h = (1 - u) * n + u * h
        else:
            i, f, g, o = jnp.split(zx + zh, 4, axis=1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return h, c

    return advance


def jax_step(case):
    """The same in JAX: the input product of all steps at once, then lax.scan; forward and backward in one jit."""
    import jax
    from jax import numpy as jnp

    jax.config.update("jax_platforms", "cpu")
    x, d_outputs, weights = drawn(case)
    H = case["hidden"]
    advance = jax_advance(case["cell"], H)

    def layer(weights, x):
        w_ih, w_hh, b_ih, b_hh = weights
        zeros = jnp.zeros((case["batch"], H), x.dtype)

        def body(state, zx):
            state = advance(state, zx, w_hh, b_hh)
            return state, state[0]

        return jax.lax.scan(body, (zeros, zeros), x @ w_ih.T + b_ih)[1]

    @jax.jit
    def gradients(weights, x, d_outputs):
        return jax.vjp(lambda w: layer(w, x), weights)[1](d_outputs)[0]

    placed = [jnp.asarray(w) for w in weights], jnp.asarray(x), jnp.asarray(d_outputs)
    return lambda: jax.block_until_ready(gradients(*placed))


def serve(pipe, framework):
    """Answer requests until the pipe closes: ("case", case), ("time", seconds), ("first", case), ("rate",), ("memory",)."""
    step = None
    while True:
        try:
            request, *arguments = pipe.recv()
        except EOFError:
            return
        if request == "case":
            (case,) = arguments
            step = jax_step(case) if framework == "jax" else torch_step(case, framework)
            pipe.send([np.asarray(g) for g in step()])
        elif request == "time":
            step()  # caches and the pools of threads are warm again after the others' turn
            taken, end = [], time.perf_counter() + arguments[0]
            while not taken or time.perf_counter() < end:
                start = time.perf_counter()
                step()
                taken.append(time.perf_counter() - start)
            pipe.send(taken)
        elif request == "first":
            step, taken = torch_step(arguments[0], framework), []
            _warm_torch()
            for _ in range(20):
                start = time.perf_counter()
                step()
                taken.append(time.perf_counter() - start)
            pipe.send(taken)
        elif request == "rate":
            pipe.send(_rate())
        elif request == "memory":
            pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def _warm_torch():
    """A training step of a linear layer: torch itself loads much at its first."""
    import torch

    layer = torch.nn.Linear(64, 64)
    torch.autograd.grad(layer(torch.randn(512, 64)), list(layer.parameters()), torch.randn(512, 64))


def _rate():
    """Operations a second of a large product of float32 matrices."""
    import torch

    torch.set_num_threads(2)
    n = 2048
    a, b, times = torch.randn(n, n), torch.randn(n, n), []
    for _ in range(4):
        start = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - start)
    return 2 * n**3 / min(times)
