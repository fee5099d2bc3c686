"""Is the verdict right, and do its remedies help? On labelled cases; each remedy is applied and its measure taken again.

    .venv/bin/python benchmarks/verdict.py [SEED ...]

The cases are those of tests/flow_cases.py, more than a hundred for each seed (default: 10 11). Exits with 1 if fewer than
95 % are right, more than 2 % of the healthy ones raise an alarm, or a remedy improves its measure in fewer than 80 %.
"""

import copy
import sys
import warnings
from collections import defaultdict
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tests.flow_cases import Case, cases, right


def measure(flow, finding, name):
    """The measure that a remedy names, such that less is better."""
    if name == "external":  # does a gradient arrive?
        layer = next((found for found in flow if found.name == finding.layer or found.module == finding.layer), None)
        return 1.0 if layer is None else -float(layer.external.sum())
    layer = flow[finding.layer]
    match name:
        case "horizon":
            return -layer.horizon / max(1, layer.lags)
        case "growth":
            return layer.growth
        case "saturation":
            return sum(layer.saturation.values())
        case "dead":
            return layer.dead
        case "non_finite":
            return 0.0 if layer.non_finite is None else 1.0
        case "at_start":  # share of the gradient that is lost where a chunk begins; 0 if the state is attached
            verdicts = {f.verdict for f in flow.verdict() if f.layer == finding.layer}
            return layer.reach.at_start if verdicts & {"cut", "truncation too short"} else 0.0
    raise KeyError(name)


def gated(case, bias):
    """The case with an LSTM of the same size in its module's place."""
    old = case.module
    module = nn.LSTM(old.input_size, old.hidden_size)
    with torch.no_grad():
        module.bias_ih_l0[old.hidden_size : 2 * old.hidden_size] = bias
        module.bias_hh_l0.zero_()
    return Case(case.label, case.name, module, case.run, case.steps)


def changed_by_update(case, limit):
    """How much an SGD update of rate 0.01 (clipped to `limit`) changes the weights, relative to their norm."""
    module = copy.deepcopy(case.module)
    case.run(module)
    norm = nn.utils.clip_grad_norm_(module.parameters(), limit)
    if not norm.isfinite():
        return float("inf")
    step = sum(float(p.grad.square().sum()) for p in module.parameters()) ** 0.5
    return 0.01 * step / float(sum(p.detach().square().sum() for p in module.parameters()).sqrt())


def improved(case, flow, finding, remedy):
    """Whether the remedy, applied, improves the measure that it names; None if there is no way to apply it here."""
    if remedy.name == "clip the gradient":
        return changed_by_update(case, remedy.parameters["max_norm"]) < changed_by_update(case, float("inf"))
    before = measure(flow, finding, remedy.measure)
    if remedy.name == "gating":
        again, layer = gated(case, remedy.parameters["bias"]), finding.layer.replace("rnn", "lstm")
        after = again.watch()[layer]
        return -after.horizon / max(1, after.lags) < before
    if remedy.applicable:
        module = copy.deepcopy(case.module)
        inner = module if isinstance(module, nn.RNNBase) else module[finding.layer.split(".")[0]]
        remedy.apply(inner)
        again = Case(case.label, case.name, module, case.run, case.steps)
    elif case.repaired is not None:
        again = case.repaired(remedy)
    else:
        return None
    return measure(again.watch(), finding, remedy.measure) < before


def main(seeds):
    warnings.simplefilter("default")
    torch.set_num_threads(1)
    totals, correct, remedies = defaultdict(int), defaultdict(int), defaultdict(list)
    for seed in seeds:
        for case in cases(seed):
            flow = case.watch()
            findings = flow.verdict()
            totals[case.label] += 1
            correct[case.label] += right(case, {f.verdict for f in findings})
            for finding in findings:
                for remedy in finding.remedies:
                    better = improved(case, flow, finding, remedy)
                    if better is not None:
                        remedies[finding.verdict, remedy.name].append(better)
    print(f"{'label':24}{'cases':>8}{'right':>8}")
    for label, total in totals.items():
        print(f"{label:24}{total:8}{correct[label]:8}")
    share = sum(correct.values()) / sum(totals.values())
    alarms = 1 - correct["healthy"] / totals["healthy"]
    print(f"right {share:.1%} of {sum(totals.values())}, false alarms {alarms:.1%} of {totals['healthy']} healthy\n")
    print(f"{'verdict':24}{'remedy':28}{'applied':>8}{'improved':>10}")
    for (verdict, name), seen in remedies.items():
        print(f"{verdict:24}{name:28}{len(seen):8}{sum(seen) / len(seen):10.0%}")
    worst = min(sum(seen) / len(seen) for seen in remedies.values())
    return 0 if share >= 0.95 and alarms <= 0.02 and worst >= 0.8 else 1


if __name__ == "__main__":
    sys.exit(main([int(seed) for seed in sys.argv[1:]] or [10, 11]))
