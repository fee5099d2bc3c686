"""A warning points at the line of the user's program that led to it, not at bptt's or torch's."""

import inspect
import warnings
from contextlib import ExitStack

import pytest
import torch
from torch import nn

import bptt
from bptt.options import AddingOptions
from bptt.train.watching import WarnOnce
from bptt.warning import warn


def _here():
    """The line that calls this."""
    return inspect.currentframe().f_back.f_lineno


def _lines(action):
    """What `action` warns of, as (text, file, line); it gives the line that it wants to be blamed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        wanted = action()
    assert caught, "no warning"
    return wanted, [(str(w.message), w.filename, w.lineno) for w in caught]


def _no_layer():
    with bptt.watch(nn.Linear(2, 2)): line = _here()  # fmt: skip # noqa: E701
    return line


def _no_call():
    flow = bptt.watch(nn.GRU(2, 3))
    flow.__enter__()
    flow.__exit__(None, None, None); line = _here()  # fmt: skip # noqa: E702
    return line


def _in_a_hook():
    class Own(nn.GRU):
        def forward(self, x):
            return super().forward(x)[0]

    model = nn.Sequential(Own(2, 3))
    with bptt.watch(model):
        outputs = model(torch.randn(4, 1, 2)); line = _here()  # fmt: skip # noqa: E702
        outputs.sum().backward()
    return line


def _in_an_update():
    model = nn.GRU(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with bptt.watch(model):
        outputs = model(torch.randn(4, 1, 2))[0]
        outputs.mul_(2).sum().backward()
        optimizer.step(); line = _here()  # fmt: skip # noqa: E702
    return line


def _behind_contextlib():
    with ExitStack() as stack: stack.enter_context(bptt.watch(nn.Linear(2, 2))); line = _here()  # fmt: skip # noqa: E701, E702
    return line


def _nothing_to_fuse():
    bptt.fuse(nn.Linear(2, 2)); line = _here()  # fmt: skip # noqa: E702
    return line


def _nothing_to_unfuse():
    bptt.unfuse(bptt.RNN(2, 3, nonlinearity="sigmoid")); line = _here()  # fmt: skip # noqa: E702
    return line


def _dropout_of_one_layer():
    bptt.Recurrent(bptt.cells.GRU(), 2, 3, dropout=0.5); line = _here()  # fmt: skip # noqa: E702
    return line


def _while_training():
    WarnOnce()("cannot see"); line = _here()  # fmt: skip # noqa: E702
    return line


@pytest.mark.parametrize(
    "action",
    [
        _no_layer, _no_call, _in_a_hook, _in_an_update, _behind_contextlib, _nothing_to_fuse, _nothing_to_unfuse,
        _dropout_of_one_layer, _while_training,
    ],
)  # fmt: skip
def test_it_points_at_the_line_of_the_user(action):
    wanted, found = _lines(action)
    assert [(file, line) for _, file, line in found] == [(__file__, wanted)] * len(found), found


def test_every_file_of_the_package_is_passed_over():
    scope = {"warn": warn}
    code = compile("def g():\n    warn('x')\n", bptt.__file__, "exec")
    exec(code, scope)

    def user():
        scope["g"](); line = _here()  # fmt: skip # noqa: E702
        return line

    wanted, found = _lines(user)
    assert found == [("x", __file__, wanted)]


def test_the_category_is_the_callers():
    with pytest.warns(FutureWarning, match="soon"):
        warn("soon", FutureWarning)


def test_training_that_is_watched_blames_no_file_of_bptt(monkeypatch):
    from bptt.tasks import make_task
    from bptt.train.distributed import Processes
    from bptt.train.training import Training

    monkeypatch.setattr("bptt.flow.watching.hooks.observe", lambda *_, **__: 1 / 0)
    options = AddingOptions(length=8, hidden=8, batch=4, steps=3, watch=1)
    training = Training(options, make_task(options), Processes(0, 1, torch.device("cpu")))

    def update():
        training.update(); line = _here()  # fmt: skip # noqa: E702
        return line

    wanted, found = _lines(update)
    assert [(file, line) for _, file, line in found] == [(__file__, wanted)]
