"""Learn on a stream without end, an update at every step: the gradient goes forward in time, nothing is unfolded."""

import torch

import bptt

torch.manual_seed(0)
torch.set_num_threads(1)  # steps so small are not worth a second thread
model = bptt.Network(bptt.GRU(1, 12), 12, 1, bptt.network.Linear())
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)


def squared(outputs, targets):
    """L(t), summed over the steps that it is given: here one."""
    return ((outputs - targets) ** 2).sum()


result, two_steps_ago = None, [torch.zeros(1, 1, 1)] * 2
for step in range(1200):
    x = torch.sign(torch.randn(1, 1, 1))  # whatever comes in next: [1 step, 1 row, 1 feature]
    optimizer.zero_grad()
    result = bptt.backward(model, x, two_steps_ago[0], squared, bptt.RTRL(), result)  # its state and influence go on
    optimizer.step()
    two_steps_ago = [two_steps_ago[1], x]
    if step % 300 == 299:
        print(f"step {step + 1}: squared error {float(result.loss):.3f}")
