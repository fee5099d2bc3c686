"""From options and sizes to the network."""

import torch
from torch import nn

from bptt.layers import GRU, LSTM, RNN
from bptt.network import HEADS, Network
from bptt.options import TrainOptions
from bptt.tasks import Sizes

_GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def build_network(options: TrainOptions, sizes: Sizes) -> Network:
    """The lecture's network with the options' cell and sizes, drawn from torch's generator, on the CPU in float32.

    Biases of an LSTM's forget gate start at 1, so that at first it remembers (F. Gers 2000; R. Jozefowicz 2015).
    """
    features = _features(options, sizes)
    embedding = None if sizes.symbols is None else nn.Embedding(sizes.symbols, features)
    sizes_of_layers = (features, options.hidden, options.layers)
    recurrent: nn.Module
    if options.cell == "rnn":
        recurrent = RNN(*sizes_of_layers, nonlinearity=options.activation, dropout=options.dropout)
    elif options.cell == "gru":
        recurrent = GRU(*sizes_of_layers, dropout=options.dropout)
    else:
        recurrent = LSTM(*sizes_of_layers, dropout=options.dropout)
        _remember_at_first(recurrent)
    return Network(recurrent, options.hidden, sizes.outputs, HEADS[sizes.head](), embedding)


def _features(options: TrainOptions, sizes: Sizes) -> int:
    """Width of the recurrent layer's input. A task without the option gives each symbol as many numbers as there are."""
    if sizes.symbols is not None:
        return int(getattr(options, "embedding", min(sizes.symbols, options.hidden)))
    assert sizes.inputs is not None
    return sizes.inputs


@torch.no_grad()
def _remember_at_first(recurrent: LSTM) -> None:
    H = recurrent.hidden_size
    for layer in range(recurrent.num_layers):
        weights = recurrent.layer_weights(layer, 0)
        weights["bias_ih"][H : 2 * H] = 1  # gates in torch.nn's order: input, forget, cell, output
        weights["bias_hh"][H : 2 * H] = 0


def count_parameters(options: TrainOptions, sizes: Sizes) -> int:
    """How many weights `build_network` would make, found without making one."""
    D, H = _features(options, sizes), options.hidden
    total = (H + 1) * sizes.outputs + (sizes.symbols or 0) * D
    for layer in range(options.layers):
        total += _GATES[options.cell] * H * ((D if layer == 0 else H) + H + 2)
    return total
