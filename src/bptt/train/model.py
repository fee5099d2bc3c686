"""The network that options and a task's sizes describe: making it, and counting its weights without making it."""

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
    """Return the lecture's network with the options' cell and sizes: weights from torch's generator, on the CPU, in float32.

    The gates start open, so that the network remembers at first. Where the task says for how long it must (`length`, T
    steps), the units remember for different spans of 1 to T steps: the biases of an LSTM's forget gate and a GRU's update
    gate start at log u, u ~ U(1, T), that of the LSTM's input gate at −log u (chrono initialisation, C. Tallec,
    Y. Ollivier 2018). Otherwise the LSTM's forget gate starts at 1 (F. Gers 2000; R. Jozefowicz 2015).
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
    """Return the width of the recurrent layer's input.

    A task of symbols without the option --embedding embeds them in as many numbers as there are symbols, at most --hidden.
    """
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
    """Return how many weights `build_network` would make, without making any."""
    D, H = _features(options, sizes), options.hidden
    gates = _GATES[options.cell]
    first, other = gates * H * (D + H + 2), gates * H * (H + H + 2)
    return (H + 1) * sizes.outputs + (sizes.symbols or 0) * D + first + (options.layers - 1) * other


def count_tensors(options: TrainOptions, sizes: Sizes) -> int:
    """Return how many tensors they would be: two weights and two biases for each layer, two for the output, an embedding."""
    return 4 * options.layers + 2 + (sizes.symbols is not None)


def largest_file(options: TrainOptions, sizes: Sizes) -> int:
    """Return how many bytes a file of the network's weights can have, with a header of up to 1 kB for each tensor."""
    width = 8 if options.dtype == "float64" else 4
    return width * count_parameters(options, sizes) + 1000 * (count_tensors(options, sizes) + 10)


def check_count(path: Path, weights: Mapping[str, Tensor], options: TrainOptions, sizes: Sizes) -> None:
    """Raise InputError unless a file holds as many weights as the network has, which need not be made for this.

    So a config.json cannot ask for a network larger than the weights that lie beside it.
    """
    found, wanted = sum(t.numel() for t in weights.values()), count_parameters(options, sizes)
    tensors = count_tensors(options, sizes)
    if (found, len(weights)) != (wanted, tensors):
        raise InputError(
            f"{path} does not fit its config.json ({found:,} weights in {len(weights):,} tensors, wanted {wanted:.9g} in "
            f"{tensors:,}); restore both from one run"
        )
