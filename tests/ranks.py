"""What tests/test_parallel.py runs in each of two processes: every strategy on a model that they share.

The first process prints a line of JSON: {strategy: {case: error against the mean of both processes' gradients}}.
"""

import json
import sys
from contextlib import nullcontext, suppress
from functools import partial

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import bptt

DOUBLE = torch.float64
STRATEGIES = {
    "exact": bptt.Exact(),
    "truncated": bptt.Truncated(4, 12),
    "checkpointed": bptt.Checkpointed("20kB"),
    "rtrl": bptt.RTRL(),
    "snap1": bptt.SnAp1(),
}


def rows(x):
    return x.data if isinstance(x, PackedSequence) else x


class Model(nn.Module):
    """A layer, a head, and parameters that the loss may leave out."""

    def __init__(self, layer, unused):
        super().__init__()
        self.rnn, self.head = layer(3, 4, dtype=DOUBLE), nn.Linear(4, 2, dtype=DOUBLE)
        self.unused = nn.Linear(2, 2, dtype=DOUBLE) if unused else None

    def forward(self, x, state=None):
        outputs, state = self.rnn(x, state)
        return self.head(rows(outputs)), state


def squared(outputs, wanted):
    return ((outputs - rows(wanted)) ** 2).sum()


def made(layer=bptt.GRU, unused=False):
    torch.manual_seed(1)
    return Model(layer, unused)


def data(rank, call, packed=False):
    torch.manual_seed(7 + 10 * call + rank)
    if packed:
        return tuple(pack_sequence([torch.randn(n, w, dtype=DOUBLE) for n in (12, 9, 3)]) for w in (3, 2))
    return torch.randn(12, 2, 3, dtype=DOUBLE), torch.randn(12, 2, 2, dtype=DOUBLE)


def own(strategy, call, layer=bptt.GRU, unused=False, packed=False):
    """This process's gradient, of a model of its own."""
    model = made(layer, unused)
    bptt.backward(model, *data(dist.get_rank(), call, packed), squared, strategy)
    return found(model)


def found(model):
    return [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]


def mean(gradients):
    """Of both processes."""
    both = [g.clone() for g in gradients]
    for g in both:
        dist.all_reduce(g)
    return [g / 2 for g in both]


def error(model, want):
    """The largest, relative in norm, in either process."""
    pairs = zip(found(model), want, strict=True)
    errors = [None, None]
    dist.all_gather_object(errors, max(float((g - w).norm() / max(1.0, float(w.norm()))) for g, w in pairs))
    return max(errors)


def averaged(strategy, calls=3, how=None, wrapped_call=lambda parallel: parallel, **options):
    """After some calls, each with data of its own."""
    how = how or {}
    model = made(how.get("layer", bptt.GRU), how.get("unused", False))
    parallel = DistributedDataParallel(model, **options)
    for call in range(calls):
        parallel.zero_grad(set_to_none=not options.get("gradient_as_bucket_view"))
        bptt.backward(wrapped_call(parallel), *data(dist.get_rank(), call, how.get("packed", False)), squared, strategy)
    return error(model, mean(own(strategy, calls - 1, **how)))


def without_exchange(strategy):
    """Two calls within no_sync are added up in each process, the third one averages all."""
    model = made()
    parallel = DistributedDataParallel(model)
    for call in range(3):
        with parallel.no_sync() if call < 2 else nullcontext():
            bptt.backward(parallel, *data(dist.get_rank(), call), squared, strategy)
        sums = [sum(gs) for gs in zip(*(own(strategy, c) for c in range(call + 1)), strict=True)]
        wrong = error(model, sums if call < 2 else mean(sums))
        if wrong > 1e-12:
            break
    return wrong


def within(strategy):
    """A part of the model is wrapped, and so is a head that belongs to the loss; buffers are those of the first process."""
    model, head = made(), nn.Linear(2, 2, dtype=DOUBLE)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2)), head.bias.zero_()
    model.head.register_buffer("mark", torch.full((), float(dist.get_rank()), dtype=DOUBLE))
    model.rnn, whole = model.rnn, model
    parallel_head = DistributedDataParallel(head)
    part = nn.Module()
    part.model = DistributedDataParallel(model)
    part.forward = lambda x, state=None: part.model(x, state)

    def loss(outputs, wanted):
        return squared(parallel_head(outputs), wanted)

    for _ in range(2):
        whole.zero_grad(), head.zero_grad()
        bptt.backward(part, *data(dist.get_rank(), 0), loss, strategy)
    wrong = error(model, mean(own(strategy, 0)))
    of_head = [torch.zeros(()), torch.zeros(())]
    dist.all_gather(of_head, head.weight.grad.norm().float())
    return (
        wrong if torch.equal(*of_head) and float(model.head.mark) == 0 else "the head's gradients or the buffers differ"
    )


def hooked(strategy):
    """Hooks run once, and what they return is averaged."""
    model, calls = made(), [0, 0]
    parallel = DistributedDataParallel(model)

    def halve(gradient):
        calls[0] += 1
        return gradient / 2

    def after(_):
        calls[1] += 1

    for p in model.parameters():
        p.register_hook(halve)
        p.register_post_accumulate_grad_hook(after)
    bptt.backward(parallel, *data(dist.get_rank(), 0), squared, strategy)
    n = len(list(model.parameters()))
    wrong = error(model, [g / 2 for g in mean(own(strategy, 0))])
    return wrong if calls == [n, n] else f"hooks ran {calls} times of {n}"


def after_an_error(strategy):
    """A loss that fails in both processes: the next call is right, and the wrapper is as it was."""
    model = made()
    parallel = DistributedDataParallel(model)

    def failing(outputs, wanted):
        raise KeyError

    with suppress(KeyError):
        bptt.backward(parallel, *data(dist.get_rank(), 0), failing, strategy)
    bptt.backward(parallel, *data(dist.get_rank(), 1), squared, strategy)
    return error(model, mean(own(strategy, 1))) if "forward" not in vars(parallel) else "forward is still replaced"


def mixed(strategy):
    parallel = DistributedDataParallel(made())
    parallel.mixed_precision = object()
    return bptt.backward(parallel, *data(dist.get_rank(), 0), squared, strategy)


def sharded(kind, strategy):
    model = made()
    if kind == "fully_shard":
        for module in (model.rnn, model.head, model):
            fully_shard(module)
    else:
        model = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    bptt.backward(model, *data(dist.get_rank(), 0), squared, strategy)
    if kind == "fully_shard":
        got = [p.grad.full_tensor() for p in model.parameters()]
    else:
        with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
            got = [p.grad.clone() for p in model.parameters()]
    want = mean(own(strategy, 0))
    return max(float((g - w).norm() / w.norm()) for g, w in zip(got, want, strict=True))


CASES = {
    "plain": averaged,
    "torch.nn": partial(averaged, how={"layer": nn.LSTM}),
    "function": partial(averaged, wrapped_call=lambda parallel: lambda x, state=None: parallel(x, state)),
    "function, unused": partial(
        averaged, how={"unused": True}, find_unused_parameters=True,
        wrapped_call=lambda parallel: lambda x, state=None: parallel(x, state),
    ),
    "packed": partial(averaged, how={"packed": True}),
    "no_sync": without_exchange,
    "unused": partial(averaged, how={"unused": True}, find_unused_parameters=True),
    "static": partial(averaged, static_graph=True),
    "static, unused": partial(averaged, how={"unused": True}, static_graph=True),
    "bucket view": partial(averaged, gradient_as_bucket_view=True),
    "many buckets": partial(averaged, bucket_cap_mb=1e-5),
    "within": within,
    "hooks": hooked,
    "after an error": after_an_error,
}  # fmt: skip
SHARDED = ("fully_shard", "FullyShardedDataParallel")
ONLINE = ("rtrl", "snap1")


def result(run, strategy):
    try:
        return run(strategy)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main():
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=int(sys.argv[1]), world_size=2)
    results = {}
    for name, strategy in STRATEGIES.items():
        runs = dict(CASES) | {kind: partial(sharded, kind) for kind in SHARDED} | {"mixed precision": mixed}
        skipped = (
            ("packed", "function", "function, unused") if name in ONLINE else ("mixed precision",) * (name == "exact")
        )
        results[name] = {case: result(run, strategy) for case, run in runs.items() if case not in skipped}
    if dist.get_rank() == 0:
        print(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
