"""The remedies: what to change in a layer, with which numbers, and the change itself where it is one of weights."""

import math

import torch
from torch import Tensor, nn

from bptt.cells import LSTM, Elman
from bptt.flow.diagnosis.findings import Remedy
from bptt.flow.diagnosis.profile import LayerFlow
from bptt.flow.diagnosis.slopes import slopes
from bptt.parameters import suffix


def orthogonal_start(layer: LayerFlow, measure: str, gain: float = 1.0) -> Remedy:
    """Return the remedy that draws orthogonal recurrent weights (the identity in a ReLU layer), times a gain.

    measure: what it improves. If that is the horizon, the gain is the one at which, with the slope seen on the data, a step
    keeps the gradient's norm, eq. (39). Sources: A. Saxe et al. 2014; the identity, Q. Le et al. 2015.
    """
    ends, cell = _ends(layer), layer.cell
    name = "orthogonal start"
    identity = isinstance(cell, Elman) and cell.nonlinearity == "relu"
    if measure == "horizon":
        gain = norm_keeping_gain(layer)
    if identity:
        name = "identity start"

    def draw(module: nn.Module) -> None:
        w_hh: Tensor = getattr(module, "weight_hh" + ends)
        for block in w_hh.split(w_hh.shape[0] // cell.gates):
            nn.init.eye_(block) if identity else nn.init.orthogonal_(block)
            block.mul_(gain)

    init = "eye_" if identity else "orthogonal_"
    code = f"torch.nn.init.{init}(block) * {gain:.3g} for each gate's block of weight_hh{ends}"
    return Remedy(name, {"gain": gain}, measure, code, draw)


def norm_keeping_gain(layer: LayerFlow) -> float:
    """Return 1 / rms slope, at most 4 (the logistic sigmoid's): the gain at which a step keeps the gradient's norm."""
    found = slopes(layer.traces[-1])
    if "h" not in found:
        return 1.0
    highest = 0.25 if isinstance(layer.cell, Elman) and layer.cell.nonlinearity == "sigmoid" else 1.0
    rms = float((found["h"] * highest).square().mean().sqrt())
    return min(4.0, 1.0 / rms) if rms > 0.25 else min(4.0, 1.0 / highest)


def open_gates(layer: LayerFlow) -> Remedy:
    """Return the remedy that opens a gated layer's gates so far that they keep the state over the data's n lags.

    σ(b) = 1 − 1/n  ⟺  b = ln(n − 1), eq. (37) of docs/equations.md. Source: C. Tallec, Y. Ollivier 2018.
    """
    ends, wanted = _ends(layer), max(3, layer.lags)
    bias = math.log(wanted - 1)
    lstm = isinstance(layer.cell, LSTM)

    def open_gate(module: nn.Module) -> None:
        H = getattr(module, "weight_hh" + ends).shape[0] // layer.cell.gates
        block = slice(H, 2 * H)
        if hasattr(module, "bias_ih" + ends):
            getattr(module, "bias_ih" + ends)[block] = bias
            getattr(module, "bias_hh" + ends)[block] = 0.0

    name = "forget-gate bias" if lstm else "update-gate bias"
    code = f"{'forget' if lstm else 'update'}-gate block of bias_ih{ends} = {bias:.2f}, of bias_hh{ends} = 0"
    return Remedy(name, {"bias": bias}, "horizon", code, open_gate)


def revive_units(layer: LayerFlow) -> Remedy:
    """Return the remedy that redraws the weights of the units that are 0 everywhere, with a positive bias."""
    ends = _ends(layer)

    def revive(module: nn.Module) -> None:
        dead = ~torch.stack([(t.states[0] != 0).any(0) for t in layer.traces]).any(0)
        for name in ("bias_ih", "bias_hh"):
            if hasattr(module, name + ends):
                getattr(module, name + ends)[dead] = 0.1
        w_ih, w_hh = getattr(module, "weight_ih" + ends), getattr(module, "weight_hh" + ends)
        w_ih[dead] = torch.randn_like(w_ih[dead]) * w_ih.shape[1] ** -0.5
        w_hh[dead] = torch.eye(w_hh.shape[1], dtype=w_hh.dtype, device=w_hh.device)[dead[: len(w_hh)]] * 0.5

    return Remedy(
        "draw the dead units again", {"units": layer.dead, "bias": 0.1}, "dead",
        f"draw the rows of the {layer.dead} dead units again with bias 0.1, and halve the learning rate", revive,
    )  # fmt: skip


def shrink_net_inputs(layer: LayerFlow) -> Remedy:
    """Return the remedy that multiplies a saturated layer's weights: the root mean square of its net inputs becomes 1."""
    ends, factor = _ends(layer), _factor_to_unit_net_inputs(layer)

    def shrink(module: nn.Module) -> None:
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            if hasattr(module, name + ends):
                getattr(module, name + ends).mul_(factor)

    return Remedy(
        "smaller net inputs", {"factor": factor}, "saturation",
        f"standardise the inputs, or multiply the layer's weights by {factor:.2g}", shrink,
    )  # fmt: skip


def longer_truncation(layer: LayerFlow, reaches: float) -> Remedy:
    """Return the remedy that truncates where the gain, as it falls now, is down to `reaches`; 2 to 10 times the chunk."""
    span = layer.chunk
    wanted = math.ceil(math.log10(reaches) / layer.rate) if layer.rate < 0 else 4 * span
    wanted = max(2 * span, min(wanted, 10 * span))
    code = f"chunks of {wanted} steps, or bptt.Truncated(k1={span}, k2={wanted})"
    return Remedy("a longer truncation", {"k": wanted}, "at_start", code)


def clip_gradient(limit: float) -> Remedy:
    """Return the remedy that clips the norm of the whole model's gradient."""
    code = f"torch.nn.utils.clip_grad_norm_(model.parameters(), {limit:.3g})"
    return Remedy("clip the gradient", {"max_norm": limit}, "loss after an update", code)


def gating(layer: LayerFlow) -> Remedy:
    """Return the remedy that puts an LSTM in the layer's place, whose forget gate keeps the state over the data's lags."""
    bias = math.log(max(3, layer.lags) - 1)
    code = f"an LSTM in its place, which carries a gradient through its gates, with forget-gate bias {bias:.2f}"
    return Remedy("gating", {"bias": bias}, "horizon", code)


def _factor_to_unit_net_inputs(layer: LayerFlow) -> float:
    """The factor that brings the root mean square of the net inputs to 1, where tanh' is 0.42 or more."""
    zx, zh, _ = layer.traces[-1].inputs(slice(0, 2048))
    size = float((zx + zh).square().mean().sqrt())
    return min(1.0, 1.0 / size) if size > 0 else 1.0


def _ends(layer: LayerFlow) -> str:
    return suffix(layer.layer, layer.direction)
