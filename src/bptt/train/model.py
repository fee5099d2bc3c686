"""From options and sizes to the network."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from bptt.errors import InputError
from bptt.layers import GRU, LSTM, RNN
from bptt.network import HEADS, Network
from bptt.options import TrainOptions
from bptt.tasks import Sizes

_GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def build_network(options: TrainOptions, sizes: Sizes) -> Network:
    """The lecture's network with the options' cell and sizes, drawn from torch's generator, on the CPU in float32.

    Gates start open, so that at first the network remembers. Where the task says how long it must (`length`, T steps),
    for about 1 to T steps, other units for other spans: forget gate of an LSTM and update gate of a GRU at
    log u, u ~ U(1, T), the LSTM's input gate at −log u (chrono initialisation, C. Tallec, Y. Ollivier 2018). Else the
    LSTM's forget gate at 1 (F. Gers 2000; R. Jozefowicz 2015).
    """
    features = _features(options, sizes)
    embedding = None if sizes.symbols is None else nn.Embedding(sizes.symbols, features)
    sizes_of_layers = (features, options.hidden, options.layers)
    recurrent: nn.Module
    if options.cell == "rnn":
        recurrent = RNN(*sizes_of_layers, nonlinearity=options.activation, dropout=options.dropout)
    elif options.cell == "gru":
        recurrent = GRU(*sizes_of_layers, dropout=options.dropout)
        _remember_at_first(recurrent, getattr(options, "length", None))
    else:
        recurrent = LSTM(*sizes_of_layers, dropout=options.dropout)
        _remember_at_first(recurrent, getattr(options, "length", None))
    return Network(recurrent, options.hidden, sizes.outputs, HEADS[sizes.head](), embedding)


def _features(options: TrainOptions, sizes: Sizes) -> int:
    """Width of the recurrent layer's input. A task without the option gives each symbol as many numbers as there are."""
    if sizes.symbols is not None:
        return int(getattr(options, "embedding", min(sizes.symbols, options.hidden)))
    assert sizes.inputs is not None
    return sizes.inputs


@torch.no_grad()
def _remember_at_first(recurrent: GRU | LSTM, steps: int | None) -> None:
    """Set the biases of the gates (docs/equations.md, eqs. (37) and (38)); rows as in torch.nn: r, z, n; i, f, g, o."""
    H = recurrent.hidden_size
    keep = slice(H, 2 * H)  # z of the GRU, f of the LSTM
    for layer in range(recurrent.num_layers):
        weights = recurrent.layer_weights(layer, 0)
        if steps is not None:
            weights["bias_ih"][keep] = torch.empty(H).uniform_(1, max(2, steps)).log()
        elif isinstance(recurrent, LSTM):
            weights["bias_ih"][keep] = 1
        else:
            continue
        weights["bias_hh"][keep] = 0
        if steps is not None and isinstance(recurrent, LSTM):
            weights["bias_ih"][:H] = -weights["bias_ih"][keep]
            weights["bias_hh"][:H] = 0


def count_parameters(options: TrainOptions, sizes: Sizes) -> int:
    """How many weights `build_network` would make, found without making one."""
    D, H = _features(options, sizes), options.hidden
    gates = _GATES[options.cell]
    first, other = gates * H * (D + H + 2), gates * H * (H + H + 2)
    return (H + 1) * sizes.outputs + (sizes.symbols or 0) * D + first + (options.layers - 1) * other


def count_tensors(options: TrainOptions, sizes: Sizes) -> int:
    """How many parameters `build_network` would make: weights and biases of each layer, of the output, an embedding."""
    return 4 * options.layers + 2 + (sizes.symbols is not None)


def largest_file(options: TrainOptions, sizes: Sizes) -> int:
    """How many bytes a file of the network's weights can have, with a header of up to 1 kB a tensor."""
    width = 8 if options.dtype == "float64" else 4
    return width * count_parameters(options, sizes) + 1000 * (count_tensors(options, sizes) + 10)


def check_count(path: Path, weights: Mapping[str, Tensor], options: TrainOptions, sizes: Sizes) -> None:
    """Refuse a file whose weights are not as many as the network's, before that is made. Raises InputError.

    So a config.json cannot ask for a larger network than the weights beside it make up.
    """
    found, wanted = sum(t.numel() for t in weights.values()), count_parameters(options, sizes)
    tensors = count_tensors(options, sizes)
    if (found, len(weights)) != (wanted, tensors):
        raise InputError(
            f"{path} does not fit its config.json ({found:,} weights in {len(weights):,} tensors, wanted {wanted:.9g} in "
            f"{tensors:,}); restore both from one run"
        )
