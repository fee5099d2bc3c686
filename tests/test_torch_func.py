"""vmap, ensembles, torch.func and batched gradients: whatever torch can ask of a function, against a loop over samples."""

import copy

import pytest
import torch
from torch.autograd.functional import hessian, jacobian
from torch.func import functional_call, stack_module_state
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import bptt
from tests.cases import CELLS, assert_same

NAMES = ("RNN", "GRU", "LSTM")
DOUBLE = torch.float64


def _layer(name, **options):
    made = getattr(bptt, name)(3, 4, dtype=DOUBLE, **options) if name in NAMES else _own(name, **options)
    return made


def _own(name, **options):
    return bptt.Recurrent(CELLS[name], 3, 4, dtype=DOUBLE, **options)


OPTIONS = {
    "one layer": {},
    "two, both directions, batch first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
}
WITH_OWN = (*NAMES, "peephole", "normed")


def _parts(result):
    outputs, final = result
    outputs = outputs.data if isinstance(outputs, PackedSequence) else outputs
    return outputs, *torch.utils._pytree.tree_leaves(final)


def _named(tensors):
    return {str(i): t.detach() for i, t in enumerate(tensors)}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", WITH_OWN)
def test_vmap_over_inputs_is_a_loop_over_them(name, options):
    layer, x = _layer(name, **options), torch.randn(4, 5, 2, 3, dtype=DOUBLE)
    for in_dim in (0, 1):
        given = x.movedim(0, in_dim)
        got = torch.vmap(lambda x: _parts(layer(x)), in_dims=in_dim)(given)
        want = [torch.stack(parts) for parts in zip(*(_parts(layer(one)) for one in x), strict=True)]
        assert_same(_named(got), _named(want))
        gradients = (torch.autograd.grad(parts[0].square().sum(), list(layer.parameters())) for parts in (got, want))
        assert_same(*map(_named, gradients))


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_states_resets_and_packed_rows(name):
    layer, lengths = _layer(name, bidirectional=True), [5, 3, 1]
    x, reset = torch.randn(4, 5, 3, 3, dtype=DOUBLE), torch.rand(4, 5, 3) < 0.3
    h = torch.randn(4, 2, 3, 4, dtype=DOUBLE)
    pair = (lambda h: (h, 2 * h)) if name == "LSTM" else (lambda h: h)

    def padded(x, h, reset):
        return _parts(layer(x, pair(h), reset=reset))

    sizes = pack_padded_sequence(x[0], lengths).batch_sizes

    def packed(rows, h):
        return _parts(layer(PackedSequence(rows, sizes), pair(h)))

    rows = torch.stack([pack_padded_sequence(one, lengths).data for one in x])
    for run, given in ((padded, (x, h, reset)), (packed, (rows, h))):
        want = [torch.stack(parts) for parts in zip(*(run(*one) for one in zip(*given, strict=True)), strict=True)]
        assert_same(_named(torch.vmap(run)(*given)), _named(want))


@pytest.mark.parametrize("name", WITH_OWN)
def test_ensembles(name):
    members = [_layer(name, num_layers=2) for _ in range(3)]
    parameters, buffers = stack_module_state(members)
    base, x = copy.deepcopy(members[0]).to("meta"), torch.randn(5, 2, 3, dtype=DOUBLE)

    def loss(parameters, x):
        return _parts(functional_call(base, (parameters, buffers), (x,)))[0].square().sum()

    losses = torch.vmap(loss, in_dims=(0, None))(parameters, x)
    gradients = torch.vmap(torch.func.grad(loss), in_dims=(0, None))(parameters, x)
    for i, member in enumerate(members):
        want = member(x)[0].square().sum()
        torch.testing.assert_close(losses[i], want, rtol=1e-10, atol=1e-10)
        wanted = torch.autograd.grad(want, list(member.parameters()))
        names = [n for n, _ in member.named_parameters()]
        assert_same({n: gradients[n][i].detach() for n in names}, dict(zip(names, wanted, strict=True)))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_for_each_sample(name):
    layer, x = _layer(name), torch.randn(5, 6, 3, dtype=DOUBLE)
    parameters = {n: p.detach() for n, p in layer.named_parameters()}

    def loss(parameters, sample):
        return functional_call(layer, parameters, (sample.unsqueeze(1),))[0].square().sum()

    got = torch.vmap(torch.func.grad(loss), in_dims=(None, 1))(parameters, x)
    for b in range(6):
        want = torch.autograd.grad(layer(x[:, b : b + 1])[0].square().sum(), list(layer.parameters()))
        assert_same({n: g[b] for n, g in got.items()}, dict(zip(parameters, want, strict=True)))


@pytest.mark.parametrize("name", WITH_OWN)
def test_every_transform_of_torch_func(name):
    layer, x = _layer(name), torch.randn(4, 2, 3, dtype=DOUBLE)
    v = torch.randn_like(x)
    outputs = lambda x: layer(x)[0]  # noqa: E731
    loss = lambda x: layer(x)[0].pow(3).sum()  # noqa: E731
    J = jacobian(outputs, x)
    H = hessian(loss, x)
    found = {
        "grad": torch.func.grad(loss)(x),
        "jvp": torch.func.jvp(outputs, (x,), (v,))[1],
        "vjp": torch.func.vjp(outputs, x)[1](torch.ones(4, 2, 4, dtype=DOUBLE))[0],
        "jacrev": torch.func.jacrev(outputs)(x),
        "jacfwd": torch.func.jacfwd(outputs)(x),
        "hessian": torch.func.hessian(loss)(x),
        "grad of grad": torch.func.grad(lambda x: (torch.func.grad(loss)(x) * v).sum())(x),
    }
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x, v))[0]
        found["forward mode"] = torch.autograd.forward_ad.unpack_dual(dual).tangent
    flat = J.reshape(32, 24)
    want = {
        "grad": torch.autograd.grad(loss(leaf := x.clone().requires_grad_()), leaf)[0],
        "jvp": (flat @ v.flatten()).view(4, 2, 4),
        "vjp": flat.sum(0).view_as(x),
        "jacrev": J,
        "jacfwd": J,
        "hessian": H,
        "grad of grad": (H.reshape(24, 24) @ v.flatten()).view_as(x),
        "forward mode": (flat @ v.flatten()).view(4, 2, 4),
    }
    assert_same({n: t.detach() for n, t in found.items()}, want, 1e-9)


@pytest.mark.parametrize("backend", ["auto", "cpu", "reference"])
@pytest.mark.parametrize("name", NAMES)
def test_many_gradients_in_one_backward(name, backend):
    """torch.autograd.grad with is_grads_batched, its vectorized jacobian and hessian, and vmap over autograd.grad."""
    theirs = getattr(torch.nn, name)(3, 4, 2, bidirectional=True, dtype=DOUBLE)
    ours = getattr(bptt, name)(3, 4, 2, bidirectional=True, dtype=DOUBLE, backend=backend)
    ours.load_state_dict(theirs.state_dict())
    x, v = torch.randn(4, 2, 3, dtype=DOUBLE, requires_grad=True), torch.randn(3, 4, 2, 8, dtype=DOUBLE)
    leaves = [x, *ours.parameters()]
    y, final = ours(x)
    one_by_one = [torch.autograd.grad(y, leaves, g, retain_graph=True) for g in v]
    want = _named(torch.stack(parts) for parts in zip(*one_by_one, strict=True))
    assert_same(_named(torch.autograd.grad(y, leaves, v, retain_graph=True, is_grads_batched=True)), want)
    by_vmap = torch.vmap(lambda g: torch.autograd.grad(y, leaves, g, retain_graph=True))
    assert_same(_named(by_vmap(v)), want)
    s = final[-1] if name == "LSTM" else final  # None arrives for the outputs
    g = torch.randn(3, *s.shape, dtype=DOUBLE)
    one_by_one = [torch.autograd.grad(s, leaves, one, retain_graph=True) for one in g]
    want = _named(torch.stack(parts) for parts in zip(*one_by_one, strict=True))
    assert_same(_named(torch.autograd.grad(s, leaves, g, is_grads_batched=True)), want)
    x = x.detach()
    J = jacobian(lambda x: theirs(x)[0], x)
    assert_same({"J": jacobian(lambda x: ours(x)[0], x, vectorize=True)}, {"J": J})
    H = hessian(lambda x: theirs(x)[0].pow(3).sum(), x)
    assert_same({"H": hessian(lambda x: ours(x)[0].pow(3).sum(), x, vectorize=True)}, {"H": H})


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("name", WITH_OWN)
def test_transforms_of_packed_sequences(name, options):
    layer, packed = _layer(name, **options), pack_padded_sequence(torch.randn(4, 3, 3, dtype=DOUBLE), [4, 2, 1])
    outputs = lambda rows: layer(PackedSequence(rows, packed.batch_sizes))[0].data  # noqa: E731
    loss = lambda rows: outputs(rows).pow(3).sum()  # noqa: E731
    J, H = jacobian(outputs, packed.data), hessian(loss, packed.data)
    found = {
        "grad": torch.func.grad(loss)(packed.data),
        "jacrev": torch.func.jacrev(outputs)(packed.data),
        "jacfwd": torch.func.jacfwd(outputs)(packed.data),
        "hessian": torch.func.hessian(loss)(packed.data),
    }
    g = (outputs(packed.data).detach().square() * 3).flatten() @ J.flatten(0, 1).flatten(1)
    want = {"grad": g.view_as(packed.data), "jacrev": J, "jacfwd": J, "hessian": H}
    assert_same({n: t.detach() for n, t in found.items()}, want, 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_with_batched_gradients(name):
    layer, x = _layer(name, num_layers=2), torch.randn(3, 2, 3, dtype=DOUBLE, requires_grad=True)
    run = lambda x: _parts(layer(x))  # noqa: E731
    assert torch.autograd.gradcheck(
        run, x, check_batched_grad=True, check_forward_ad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(lambda x: layer(x)[0], x, check_batched_grad=True)
