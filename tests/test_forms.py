"""torch.nn's four forms of an input, and the names and shapes of a stack."""

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.testing import assert_close

import bptt
from bptt.forms import Arguments, Form, as_hidden, components, data_of
from bptt.layers import cell_of, find_cell
from bptt.parameters import name_in_stack, named_shapes, state_shapes, suffix, weights_of

LENGTHS = [3, 5, 1, 5]


def _input(form, dtype=torch.float64):
    """The same samples in one of the four forms, and padded time first with the number of steps of each."""
    x = torch.randn(5, 4, 2).gt(0) if dtype == torch.bool else torch.randn(5, 4, 2, dtype=dtype)
    match form:
        case "time first":
            return x, x, [5] * 4
        case "batch first":
            return x.transpose(0, 1), x, [5] * 4
        case "unbatched":
            return x[:, 0], x[:, :1], [5]
        case "packed":
            data = x.clone()
            for b, n in enumerate(LENGTHS):
                data[n:, b] = 0
            packed = pack_padded_sequence(data.double(), LENGTHS, enforce_sorted=False)
            return packed._replace(data=packed.data.to(dtype)), data, LENGTHS


@pytest.mark.parametrize("dtype", [torch.float64, torch.bool])
@pytest.mark.parametrize("name", ["time first", "batch first", "unbatched", "packed"])
def test_every_form_is_found_padded_and_given_back(name, dtype):
    given, padded, lengths = _input(name, dtype)
    form = Form.of(given, batch_first=name == "batch first")
    assert_close(form.padded(given), padded)
    assert (form.lengths is None) == (name != "packed")
    assert form.lengths is None or form.lengths.tolist() == lengths == pad_packed_sequence(given)[1].tolist()
    back = form.out(form.time_first(given))
    assert type(back) is type(given)
    assert_close(data_of(back), data_of(given))
    state = torch.randn(2, 3) if name == "unbatched" else torch.randn(2, 4, 3)
    assert form.with_batch(state).shape == (2, len(lengths), 3)
    assert_close(form.state_out(form.state_in(state)), state)


def test_lengths_of_a_sorted_packed_sequence():
    packed = pack_padded_sequence(torch.randn(5, 3, 2), [5, 4, 1])
    assert Form.of(packed, batch_first=False).lengths.tolist() == [5, 4, 1]
    alone = PackedSequence(packed.data, packed.batch_sizes)
    assert Form.of(alone, batch_first=True).lengths.tolist() == [5, 4, 1]


def test_other_numbers_of_axes_are_refused_by_name():
    with pytest.raises(ValueError, match="reset has 4 axes, wanted 3"):
        Form.of(torch.zeros(1, 1, 1, 1), batch_first=False, name="reset")


def test_arguments_of_a_call():
    x, h, c, flags = torch.zeros(3, 2, 1), torch.zeros(1, 2, 4), torch.ones(1, 2, 4), torch.zeros(3, 2)
    for args, kwargs in [((x, (h, c)), {"reset": flags}), ((), {"input": x, "hx": (h, c), "reset": flags})]:
        given = Arguments.of(args, kwargs)
        assert given.input is x
        assert given.hx == (h, c)
        assert given.reset is flags
    assert Arguments.of((x,), {}) == (x, None, None)
    assert components(h) == (h,)
    assert as_hidden((h,)) is h
    assert as_hidden((h, c)) == (h, c)


@pytest.mark.parametrize("make", [torch.nn.LSTM, bptt.LSTM])
def test_names_and_shapes_are_those_of_torch(make):
    layer = make(3, 8, num_layers=2, bidirectional=True, proj_size=5)
    cell = cell_of(layer)
    named = named_shapes(cell, 2, True, 3, 8, True, 5)
    found = {name: shape for directions in named for names in directions for _, name, shape in names}
    assert found == {name: tuple(p.shape) for name, p in layer.named_parameters()}
    assert weights_of(layer, cell, 1, 1)["weight_hr"] is layer.weight_hr_l1_reverse
    assert (name_in_stack(0, 0), suffix(1, 1)) == ("l0", "_l1_reverse")
    _, final = layer(torch.randn(4, 6, 3))
    assert [tuple(s.shape) for s in final] == state_shapes(layer, cell, 6)


def test_the_cell_of_a_module_that_repeats_none():
    assert find_cell(torch.nn.Linear(2, 2)) is None
    with pytest.raises(TypeError, match="layer is a Linear, wanted torch.nn.RNN/GRU/LSTM"):
        cell_of(torch.nn.Linear(2, 2))
