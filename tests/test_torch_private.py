"""Private parts of torch: named in one file, there in this torch, and replaced by something right where they are not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import bptt
from bptt import torch_private

SOURCE = Path(bptt.__file__).parent
# A module or an attribute of torch whose name begins with an underscore, and attributes that torch keeps for itself.
PRIVATE = re.compile(
    r"\btorch(\.\w+)*\._(?!_)\w+|\bfrom torch[\w.]* import .*\b_\w+|_current_level\b|\b_VF\b|torch_parallel_for"
    r"|\._(version|flat_weights|parameters|buffers|modules|schema|is_zerotensor|\w*hooks)\b"
)
# Run in a process of its own. Every gradient is compared with that of the plain equations, or of torch.nn.
USE = """
import warnings
import torch, bptt
from torch.func import functional_call, grad, vmap
from torch.nn.utils.rnn import pack_padded_sequence
from bptt import torch_private
from bptt.forms import data_of

warnings.simplefilter("ignore")
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
x = torch.randn(12, 3, 4)


def grads(model, loss):
    model.zero_grad()
    loss(model).backward()
    return [p.grad.clone() for p in model.parameters()]


for kind in ("RNN", "GRU", "LSTM"):
    plain = getattr(torch.nn, kind)(4, 5, num_layers=2, bidirectional=True)
    fused = bptt.fuse(torch.nn.Sequential(plain.__class__(4, 5, num_layers=2, bidirectional=True)))
    fused[0].load_state_dict(plain.state_dict())
    assert isinstance(fused[0], getattr(bptt, kind))
    for given in (x, pack_padded_sequence(x, [12, 9, 2])):
        total = lambda layer: data_of(layer(given)[0]).sin().sum()
        for mine, theirs in zip(grads(fused[0], total), grads(plain, total), strict=True):
            close(mine, theirs)
    twice = lambda layer: torch.autograd.grad(layer(x)[0].sin().sum(), layer.weight_hh_l0, create_graph=True)[0].cos().sum()
    for mine, theirs in zip(grads(fused[0], twice), grads(plain, twice), strict=True):
        close(mine, theirs)

layer = bptt.GRU(4, 5)
parameters = dict(layer.named_parameters())
of_sample = lambda sample: grad(lambda p: functional_call(layer, p, (sample,))[0].sin().sum())(parameters)
summed = {name: g.sum(0) for name, g in vmap(of_sample, in_dims=1)(x).items()}
for name, p in parameters.items():
    close(summed[name], torch.autograd.grad(layer(x)[0].sin().sum(), p)[0])
traced = torch.jit.trace(layer, (x,), check_trace=False)
close(traced(x.flip(0))[0], layer(x.flip(0))[0])
squared = lambda outputs, y: ((outputs - y) ** 2).sum()
y = torch.randn(12, 3, 5)
exact = grads(layer, lambda model: squared(model(x)[0], y))
for strategy in (bptt.Exact(), bptt.Truncated(12), bptt.Checkpointed("10MB"), bptt.RTRL()):
    layer.zero_grad()
    bptt.backward(layer, x, y, squared, strategy)
    for p, g in zip(layer.parameters(), exact, strict=True):
        close(p.grad, g)


class Own(bptt.PointwiseCell):
    gates = 1

    def pointwise(self, zx, zh, state):
        return (torch.tanh(zx + zh).squeeze(-2),)


own, elman = bptt.Recurrent(Own(), 4, 5), bptt.RNN(4, 5)
own.load_state_dict(elman.state_dict())
for mine, theirs in zip(grads(own, lambda m: m(x)[0].sum()), grads(elman, lambda m: m(x)[0].sum()), strict=True):
    close(mine, theirs)
print(sorted(torch_private.missing))
"""
# Without these the native core is never chosen; all others are tried with it.
CAUTIOUS = {"_C._are_functorch_transforms_active", "autograd.forward_ad._current_level", "torch_parallel_for"}


def _run(without):
    environment = os.environ | {"BPTT_TORCH_WITHOUT": without}
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(eval(done.stdout.splitlines()[-1]))  # noqa: S307  # a list that USE printed


def test_private_parts_are_named_in_one_file():
    for path in SOURCE.rglob("*.py"):
        if path.name == "torch_private.py":
            continue
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            code = line.split("#")[0]
            found = PRIVATE.search(code)
            assert found is None or found[0] in code.split('"""')[-1] or code.strip().startswith("<class"), (
                f"{path.name}:{number} names {found[0]}, a private part of torch: move it to torch_private.py"
            )


def test_this_torch_has_all_of_them():
    assert not torch_private.missing


@pytest.mark.slow
def test_without_any_of_them_every_gradient_is_right():
    assert _run("all") >= CAUTIOUS


@pytest.mark.slow
def test_without_those_that_do_not_keep_the_core_from_running():
    every = _run("all")
    assert _run(",".join(every - CAUTIOUS)) == every - CAUTIOUS


def test_trees_without_those_of_torch():
    code = (
        "from typing import NamedTuple\n"
        "from bptt import torch_private as p\n"
        "class Pair(NamedTuple):\n    a: int\n    b: object\n"
        "tree = {'x': (1, None, [2]), 'y': Pair(3, ())}\n"
        "leaves, structure = p.tree_flatten(tree)\n"
        "assert p.tree_leaves(tree) == leaves == [1, None, 2, 3]\n"
        "assert structure.unflatten([1, None, 2, 3]) == tree\n"
        "assert structure == p.tree_flatten(p.tree_map(str, tree))[1]\n"
        "assert structure != p.tree_flatten([1, 2, 3])[1]\n"
        "assert p.tree_map(lambda a, b: (a, b), tree, tree)['y'] == Pair((3, 3), ())\n"
        "assert p.tree_map(len, [[1], [2, 3]], is_leaf=lambda t: isinstance(t, list) and isinstance(t[0], int)) == [1, 2]\n"
        "print('fits')"
    )
    for without in ("all", ""):
        environment = os.environ | {"BPTT_TORCH_WITHOUT": without}
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
        )
        assert done.stdout == "fits\n", done.stderr
