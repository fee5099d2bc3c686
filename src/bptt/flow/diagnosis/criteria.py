"""The thresholds beyond which something is wrong with the gradient in a layer, and the reason for each.

Everything is measured on data along the trajectory (`LayerFlow`), nothing on W_hh alone: a matrix of
spectral radius < 1 may still amplify a gradient a hundredfold, and one of largest singular value > 1 may still lose it.

| threshold | value | reason |
|---|---|---|
| `FEW_LAGS` | 8 steps | a gate at 1/2 loses two decades in 7 steps: fewer lags cannot tell good from bad |
| `REACHES` (horizon.py) | 1 % | of a loss step's gradient: less than that drowns in the lags before it |
| `VANISHED` | 1/4 | the horizon covers less than a quarter of the lags in the data: the rest is not learned |
| `EXPLODED` | 10 | one decade; the healthy ones of tests/flow_cases.py stay below 5 |
| `SATURATED` (slopes.py) | 5 % | of the slope's maximum: |z| > 2.2 for tanh, > 4.4 for the logistic sigmoid |
| `SATURATED_SHARE` | 4/5 | of the candidate; the labelled cases stand at 0.97, character LSTMs that predict well at 0.6 |
| `DEAD_SHARE` | 1/4 | a ReLU layer loses a few units as a matter of course; a quarter of its width it does not |
| `FEW_ROWS` | 32 | (step, sample) rows: a live ReLU is 0 in about half of them; over fewer than these, some are in all |
| `DETACHED_GAIN` | 10 % | of a loss step's gradient is still there at the chunk's start: truncation takes more than noise |
| `AGREE` | 3/4 | of the samples, over all watched batches, lie on one side of a threshold, else: borderline |
| `YOUNG` | 1,000 updates | until then what a default start does may be seen: below |
| `START` | 3 to 11 steps | how far torch.nn's default start reaches back, over widths and inputs: below |

Untrained layers. torch.nn's default start reaches few steps back, however many the data has: of 99 the LSTM 5 to 7, the GRU
7 to 11, the RNN 3 to 9 (benchmarks/untrained.py, which also trains them on the adding problem). So "vanishing" is normal at
the start of a training, and says what it has to overcome. A layer that overcomes it has done so after about 1,000 updates:
the GRU after 200 (learning rate 0.005) or 500 to 700 (0.001), the LSTM after 1,500 to 2,000 (0.005). One that does not (the
RNN; the LSTM at 0.001) stays at about 10 steps for 2,000 updates: then a remedy is due.
"""

from collections.abc import Callable

from bptt.cells import GRU, LSTM, Elman
from bptt.flow.diagnosis.findings import Evidence
from bptt.flow.diagnosis.profile import LayerFlow
from bptt.flow.tracing.horizon import Span

FEW_LAGS, VANISHED, EXPLODED, SATURATED_SHARE, DEAD_SHARE, FEW_ROWS, DETACHED_GAIN = 8, 0.25, 10.0, 0.8, 0.25, 32, 0.1
AGREE, YOUNG, START = 0.75, 1000, (3, 11)
CANDIDATE = {Elman: "h", GRU: "n", LSTM: "g"}  # the gate that carries what is new; the others may saturate to remember


def vanishes(span: Span) -> bool:
    """Return whether the horizon covers less than a quarter of enough lags to tell."""
    return span.lags >= FEW_LAGS and span.horizon < VANISHED * span.lags


def explodes(span: Span) -> bool:
    """Return whether a gradient grows by a decade or more."""
    return span.growth >= EXPLODED


def beyond(layer: LayerFlow, threshold: Callable[[Span], bool]) -> tuple[int, int]:
    """Return in how many samples the gradient is beyond a threshold, and of how many that can tell."""
    spans = [span for span in layer.spans if threshold is explodes or span.lags >= FEW_LAGS]
    return sum(map(threshold, spans)), len(spans)


def is_clear(layer: LayerFlow, threshold: Callable[[Span], bool]) -> bool:
    """Return whether enough samples agree with what is found of all together."""
    over, of = beyond(layer, threshold)
    return (over if threshold(layer.reach.span) else of - over) >= AGREE * of


def flow_evidence(layer: LayerFlow) -> Evidence:
    """Return the numbers on which a verdict about the reach of the gradient rests."""
    shortest, longest = layer.horizon_range
    return {
        "horizon_steps": layer.horizon, "shortest_horizon_steps": shortest, "longest_horizon_steps": longest,
        "samples": len(layer.spans), "batches": layer.batches, "lags_steps": layer.lags, "largest_gain": layer.growth,
        "decades_per_step": layer.rate,
    }  # fmt: skip


def samples_seen(layer: LayerFlow) -> str:
    """Return "samples of 3 batches", or "samples" where there is only one batch."""
    return f"samples of {layer.batches} batches" if layer.batches > 1 else "samples"


def spread(layer: LayerFlow) -> str:
    """Return "41 to 63 in 24 samples of 3 batches": the samples' horizons; "" where all agree."""
    shortest, longest = layer.horizon_range
    return "" if shortest == longest else f"{shortest} to {longest} in {len(layer.spans)} {samples_seen(layer)}"


def candidate_saturation(layer: LayerFlow) -> float:
    """Return the share of (unit, step, sample) in which the candidate's slope is below 5 % of its maximum; 0 if unknown."""
    return layer.saturation.get(CANDIDATE.get(type(layer.cell), ""), 0.0)


def has_died(layer: LayerFlow) -> bool:
    """Return whether a quarter of a ReLU layer is 0 over enough rows to tell."""
    rows = sum(len(trace.x) for trace in layer.traces)
    enough = rows >= FEW_ROWS or layer.dead == layer.units
    return enough and layer.dead >= max(1, DEAD_SHARE * layer.units)
