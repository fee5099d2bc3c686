"""Golden cases for the engine of the page: random networks, and torch's float64 answers by autograd."""

import torch

ACTIVATIONS = {"tanh": torch.tanh, "sigmoid": torch.sigmoid, "relu": torch.relu}


def draw(generator, cell, activation, head, counted, lags=1, biases=1):
    """One case as the engine takes it: a network of a random size, inputs, targets and a start."""

    def integer(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).tolist()

    T, D, H = integer(1, 9), integer(1, 4), integer(1, 4)
    K = 1 if head == "sigmoid" else integer(2, 4)
    G = 4 if cell == "lstm" else 1
    net = {"cell": cell, "activation": activation, "head": head, "counted": counted, "W_hx": normal(G * H, D)}
    net |= {"W_hh": normal(G * H, H), "b_h": normal(G * H), "W_yh": normal(K, H), "b_y": normal(K)}
    if lags == 2:
        net["W_hh2"] = normal(H, H)
    if biases == 2:
        net["b_hh"] = normal(G * H)
    targets = normal(T, K) if head == "linear" else [integer(0, max(K - 1, 1)) for _ in range(T)]
    width = 2 * H if cell == "lstm" or lags == 2 else H
    return {"net": net, "x": normal(T, D), "targets": targets, "state0": normal(width)}


def answers(case):
    """What `answer` of explain_cases.mjs gives, by torch. Each step has its own copy of each parameter, for the terms."""
    net = case["net"]
    weights = {name: _leaf(net[name]) for name in net if name[0] in "Wb"}
    copies, states, losses, outputs = [], [_leaf(case["state0"])], [], []
    for x, target in zip(case["x"], case["targets"], strict=True):
        own = {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}
        copies.append(own)
        states.append(_step(net, own, torch.tensor(x, dtype=torch.float64), states[-1]))
        h = states[-1][: _hidden(net)]
        z = own["W_yh"] @ h + own["b_y"]
        losses.append(_loss(net["head"], z, target))
        outputs.append((_output(net["head"], z), h))
    counting = [loss for t, loss in enumerate(losses) if net["counted"] == "each" or t == len(losses) - 1]
    loss = torch.stack(counting).sum()
    by_copy = {name: [[_grad(part, c[name]) for c in copies] for part in _counted(net, losses)] for name in weights}
    T = len(losses)
    recurrent = [name for name in weights if name not in ("W_yh", "b_y")]
    terms = {name: [[by_copy[name][t][k] for k in range(t + 1)] for t in range(T)] for name in recurrent}
    zero = torch.zeros_like(weights["W_hh"])
    W_hh = terms["W_hh"]
    products = [_jacobian(states[T], states[k]) for k in range(T + 1)]
    gradient = {name: sum(_grad(loss, c[name]) for c in copies) for name in weights}
    also = {"paths": {name: gradient[name] for name in recurrent}} if net["cell"] == "rnn" else {}
    if len(case["state0"]) == 2:
        also["grown"] = torch.linalg.svdvals(products[1])
    return {
        **also,
        "h": [h for _, h in outputs],
        "y": [y for y, _ in outputs],
        "losses": losses,
        "loss": loss,
        "gradient": gradient,
        "state": [_grad(loss, state) for state in states[1:]],
        "lossByHidden": [_grad(part, h) for part, (_, h) in zip(_direct(case, outputs), outputs, strict=True)],
        "terms": terms,
        "rows": [sum(row, zero) for row in W_hh],
        "columns": [sum((W_hh[t][k] for t in range(k, T)), zero) for k in range(T)],
        "lags": [sum((W_hh[t][t - lag] for t in range(lag, T)), zero) for lag in range(T)],
        "total": sum((sum(row, zero) for row in W_hh), zero),
        "product": products[0],
        "products": products,
        "singular": torch.linalg.svdvals(products[0]),
        "rebuilt": products[0],
        "reach": torch.stack([torch.linalg.svdvals(products[T - lag][: _hidden(net)])[0] for lag in range(T)]),
    }


def _leaf(values):
    return torch.tensor(values, dtype=torch.float64, requires_grad=True)


def _hidden(net):
    return len(net["W_hh"][0])


def _step(net, w, x, state):
    H = _hidden(net)
    z = w["W_hx"] @ x + w["W_hh"] @ state[:H] + w["b_h"] + w.get("b_hh", 0)
    if net["cell"] == "lstm":
        i, f, g, o = z.split(H)
        c = torch.sigmoid(f) * state[H:] + torch.sigmoid(i) * torch.tanh(g)
        return torch.cat([torch.sigmoid(o) * torch.tanh(c), c])
    if "W_hh2" in w:
        return torch.cat([ACTIVATIONS[net["activation"]](z + w["W_hh2"] @ state[H:]), state[:H]])
    return ACTIVATIONS[net["activation"]](z)


def _output(head, z):
    return {"softmax": lambda: z.softmax(-1), "sigmoid": z.sigmoid, "linear": lambda: z * 1}[head]()


def _loss(head, z, target):
    if head == "softmax":
        return torch.nn.functional.cross_entropy(z, torch.tensor(target))
    if head == "sigmoid":
        wanted = torch.tensor([float(target)], dtype=torch.float64)
        return torch.nn.functional.binary_cross_entropy_with_logits(z, wanted)
    return ((z - torch.tensor(target, dtype=torch.float64)) ** 2).sum()


def _counted(net, losses):
    return [loss if net["counted"] == "each" or t == len(losses) - 1 else loss * 0 for t, loss in enumerate(losses)]


def _direct(case, outputs):
    """The counted losses as functions of h(t) alone, for ∂L(t)/∂h(t) without the way through later steps."""
    net = case["net"]
    W, b = _leaf(net["W_yh"]), _leaf(net["b_y"])
    losses = [_loss(net["head"], W @ h + b, t) for (_, h), t in zip(outputs, case["targets"], strict=True)]
    return _counted(net, losses)


def _grad(of, by):
    (found,) = torch.autograd.grad(of, by, retain_graph=True, allow_unused=True)
    return torch.zeros_like(by) if found is None else found


def _jacobian(of, by):
    return torch.stack([_grad(entry, by) for entry in of])
