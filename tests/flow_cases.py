"""Labelled cases of how a gradient fares: what is wrong is known from how each case is built, not from what is measured."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn

import bptt

KINDS = {"RNN": nn.RNN, "GRU": nn.GRU, "LSTM": nn.LSTM}


@dataclass
class Case:
    """A recurrent module, and how it is run: `run(module)` does forward and backward, perhaps several times.

    `repaired(remedy)`, for remedies that lie in the user's code and not in the weights: the case with that code changed.
    """

    label: str
    name: str
    module: nn.Module
    run: Callable[[nn.Module], None]
    steps: int
    repaired: Callable[[bptt.flow.Remedy], "Case"] | None = None

    def watch(self) -> bptt.Flow:
        flow = bptt.watch(self.module)
        with flow:
            self.run(self.module)
        return flow


def _loss(outputs, every_step=True):
    weights = torch.randn(outputs.shape[-1], generator=torch.Generator().manual_seed(5))
    value = (outputs @ weights - 0.3).square()
    return value.sum() if every_step else value[-1].sum()


def _simple(x, every_step=True):
    def run(module):
        _loss(module(x)[0], every_step).backward()

    return run


def _orthogonal(module, gain):
    with torch.no_grad():
        for block in module.weight_hh_l0.split(module.hidden_size):
            nn.init.orthogonal_(block).mul_(gain)


def _gate_bias(module, bias):
    """The gate that keeps: the LSTM's forget gate, the GRU's update gate; both are the second block."""
    H = module.hidden_size
    with torch.no_grad():
        module.bias_ih_l0[H : 2 * H] = bias
        module.bias_hh_l0[H : 2 * H] = 0


def _input(T, D=4, B=8, scale=1.0):
    return scale * torch.randn(T, B, D)


def healthy(kind, H, T, every_step):
    module = KINDS[kind](4, H)
    x = _input(T)
    if kind == "RNN":
        _orthogonal(module, 1.0)
        with torch.no_grad():
            module.weight_ih_l0.mul_(0.3)
            module.bias_hh_l0.zero_()
        x = 0.3 * x
    else:
        _gate_bias(module, math.log(T) + 0.5)
    return Case("healthy", "", module, _simple(x, every_step), T)


def healthy_identity(H, T):
    module = nn.RNN(4, H, nonlinearity="relu")
    with torch.no_grad():
        module.weight_hh_l0.copy_(torch.eye(H))
        module.bias_ih_l0.fill_(0.3)
        module.bias_hh_l0.zero_()
        module.weight_ih_l0.mul_(0.3)
    return Case("healthy", "identity ", module, _simple(_input(T)), T)


def vanishing(kind, H, T, every_step):
    module = KINDS[kind](4, H)
    if kind == "RNN":
        _orthogonal(module, 0.4)
    else:
        _orthogonal(module, 0.2)
        _gate_bias(module, -1.5)
    return Case("vanishing", "", module, _simple(_input(T), every_step), T)


def exploding(kind, H, T, every_step):
    """ρ = 10^(4/T), so that a gradient grows 10⁴-fold over T steps.

    Rectified: W_hh = ρ I. Gated: every gate at 1/2 and states so small that all is linear, c_t = (1/2 + w/4) c_{t-1} with
    the candidate's block w I (the GRU's h the same).
    """
    rho = 10 ** (4 / T)
    if kind == "RNN":
        module = nn.RNN(4, H, nonlinearity="relu")
        with torch.no_grad():
            module.weight_hh_l0.copy_(rho * torch.eye(H))
            module.bias_ih_l0.fill_(0.5)
        return Case("exploding", "", module, _simple(_input(T), every_step), T)
    module = KINDS[kind](4, H)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.mul_(1e-6 if name == "weight_ih_l0" else 0)
        module.weight_hh_l0[2 * H : 3 * H] = (4 * rho - 2) * torch.eye(H)
    return Case("exploding", "", module, _simple(_input(T), every_step), T)


def saturated(kind, H, T, every_step):
    return Case("saturated", "", KINDS[kind](4, H), _simple(_input(T, scale=60 * H**0.5), every_step), T)


def dead(H, T, share):
    module = nn.RNN(4, H, nonlinearity="relu")
    with torch.no_grad():
        module.bias_ih_l0[: int(share * H)] = -20.0
    return Case("dead units", "", module, _simple(_input(T)), T)


def detached_state(kind, H, T):
    return _two_calls(KINDS[kind](4, H), _input(2 * T), T, detach=True)


def _two_calls(module, x, T, detach):

    def run(module):
        first, state = module(x[:T])
        if detach:
            state = _detached(state)
        _loss(torch.cat([first, module(x[T:], state)[0]])).backward()

    return Case("cut", "state ", module, run, T, lambda remedy: _two_calls(module, x, T, detach=False))


def detached_outputs(kind, H, T):
    module = nn.ModuleDict({"below": KINDS[kind](4, H), "above": nn.LSTM(H, H)})
    with torch.no_grad():
        module["above"].bias_ih_l0[H : 2 * H] = math.log(T) + 0.5
    return _two_modules(module, _input(T), T, detach=True)


def _two_modules(module, x, T, detach):
    def run(module):
        between = module["below"](x)[0]
        _loss(module["above"](between.detach() if detach else between)[0]).backward()

    return Case("cut", "outputs ", module, run, T, lambda remedy: _two_modules(module, x, T, detach=False))


def not_finite(kind, H, T, value):
    x = _input(T)
    x[T // 2, 3, 1] = value
    module = KINDS[kind](4, H)

    def repaired(remedy):
        clean = x.clone()
        step, sample = remedy.parameters["step"], remedy.parameters["sample"]
        clean[step, sample] = clean[step, sample].nan_to_num(0, 0, 0)
        return Case("", "", module, _simple(clean), T)

    return Case("non-finite input", "", module, _simple(x), T, repaired)


def too_short(kind, H, chunk):
    """A memory of a hundred steps and more, trained in chunks with the state detached between their backward passes."""
    module = KINDS[kind](4, H)
    x = _input(3 * chunk, scale=0.3)
    if kind == "RNN":
        _orthogonal(module, 1.0)
        with torch.no_grad():
            module.weight_ih_l0.mul_(0.3)
    else:
        _gate_bias(module, 5.0)
    return _in_chunks(module, x, chunk)


def _in_chunks(module, x, chunk):
    def run(module):
        state = None
        for piece in x.split(chunk):
            outputs, state = module(piece, state)
            _loss(outputs).backward()
            state = _detached(state)

    repaired = lambda remedy: _in_chunks(module, x, remedy.parameters["k"])  # noqa: E731
    return Case("truncation too short", "", module, run, chunk, repaired)


def _detached(state):
    return tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()


def _makers() -> Iterator[Callable[[], Case]]:
    for kind in KINDS:
        for H, T in ((8, 30), (32, 60), (48, 24)):
            for every in (True, False):
                for make in (healthy, vanishing, exploding, saturated):
                    yield lambda m=make, k=kind, h=H, t=T, e=every: m(k, h, t, e)
        for H, T in ((8, 12), (32, 40)):
            yield lambda k=kind, h=H, t=T: detached_state(k, h, t)
            yield lambda k=kind, h=H, t=T: detached_outputs(k, h, t)
            yield lambda k=kind, h=H, t=T: not_finite(k, h, t, math.nan)
            yield lambda k=kind, h=H, t=T: not_finite(k, h, t, math.inf)
            yield lambda k=kind, h=H: too_short(k, h, 10)
    for H, T in ((8, 30), (32, 60)):
        yield lambda h=H, t=T: healthy_identity(h, t)
        for share in (0.5, 0.9, 1.0):
            yield lambda h=H, t=T, s=share: dead(h, t, s)


def cases(seed: int) -> Iterator[Case]:
    """More than a hundred cases, drawn anew for each seed."""
    for n, make in enumerate(_makers()):
        torch.manual_seed(1000 * seed + n)
        case = make()
        case.name = f"{case.label}: {case.name}{case.module} T {case.steps} #{seed}.{n}"
        yield case


# What may stand beside the label: a consequence of what the label names.
ALONG = {
    "saturated": {"vanishing"}, "cut": {"vanishing", "healthy"}, "dead units": {"no gradient"},
    "truncation too short": set(),
}  # fmt: skip


def right(case: Case, verdicts: set[str]) -> bool:
    """Whether the verdict names what the case was built to have, and nothing that does not follow from it."""
    return case.label in verdicts and verdicts <= {case.label} | ALONG.get(case.label, set())
