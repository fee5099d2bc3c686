"""What a gradient reaches in a layer of torch.nn's default start, and after how many updates it reaches further.

    .venv/bin/python benchmarks/untrained.py [STEPS]

Prints the memory horizon (of 99 lags) before any update, for several widths and inputs, then while the adding problem of
100 steps is learned (64 units, batch 32, Adam, gradients clipped to 1; two seeds, two learning rates; for STEPS updates,
2000 if not given). Its figures stand behind `YOUNG` and `START` in src/bptt/flow/diagnosis/criteria.py.
On 2 cores of an AVX-512 machine, torch 2.13, in a few minutes:

- before any update: LSTM 5 to 7, GRU 7 to 11, RNN 3 to 9;
- LSTM: at lr 0.001 8 to 24 for 2,000 updates; at 0.005 4 to 13, and all 99 after 1,500 and 2,000, when the loss has fallen;
- GRU: at 0.001 a quarter of the lags after 500 and 99 after 1,500; at 0.005 35 to 98 after 200 and 99 after 500;
- RNN: 1 to 15, never more.
"""

import statistics
import sys

import torch
from torch import nn

import bptt

T, BATCH, WIDTH = 100, 32, 64
KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
LOOKS = (0, 10, 30, 100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000)


def horizon_at_start(kind, features, hidden, scale, seed):
    """The horizon of an untrained layer on random input, with a loss at the last step."""
    torch.manual_seed(seed)
    model = KINDS[kind](features, hidden)
    with bptt.watch(model) as flow:
        model(scale * torch.randn(T, BATCH, features))[0][-1].square().mean().backward()
    return next(iter(flow)).horizon


def adding(generator):
    """x [T, B, 2] and the sum of the two marked numbers [B]."""
    x = torch.rand(T, BATCH, 2, generator=generator)
    x[:, :, 1] = 0
    rows = torch.arange(BATCH)
    marked = [torch.randint(low, low + T // 2, (BATCH,), generator=generator) for low in (0, T // 2)]
    for at in marked:
        x[at, rows, 1] = 1
    return x, sum(x[at, rows, 0] for at in marked)


def horizons(kind, lr, seed, steps):
    """(update, horizon, loss) while it trains."""
    torch.manual_seed(seed)
    model, head = bptt.fuse(KINDS[kind](2, WIDTH)), nn.Linear(WIDTH, 1)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer, generator, found = torch.optim.Adam(parameters, lr=lr), torch.Generator().manual_seed(100 + seed), []
    for update in range(steps + 1):
        x, y = adding(generator)
        optimizer.zero_grad()
        flow = bptt.watch(model)
        if update in LOOKS:
            flow.__enter__()
        loss = (head(model(x)[0][-1]).squeeze(-1) - y).square().mean()
        loss.backward()
        if update in LOOKS:
            flow.__exit__(None, None, None)
            found.append((update, next(iter(flow)).horizon, round(loss.item(), 3)))
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return found


def main(steps):
    torch.set_num_threads(1)
    for kind in KINDS:
        cases = [(d, h, s, seed) for d in (2, 32) for h in (8, 32, 128) for s in (0.3, 1.0) for seed in range(2)]
        found = sorted(horizon_at_start(kind, *case) for case in cases)
        print(
            f"{kind:5} untrained: {found[0]} to {found[-1]} of {T - 1}, median {statistics.median(found)}", flush=True
        )
    for kind in KINDS:
        for lr in (0.001, 0.005):
            for seed in (0, 1):
                seen = ", ".join(f"{n}: {horizon} ({loss})" for n, horizon, loss in horizons(kind, lr, seed, steps))
                print(f"{kind:5} lr {lr} seed {seed}, update: horizon (loss)  {seen}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)
