"""Draw docs/map.png: the terms (t, k) of eq. (10) in the README's LSTM, before and after the remedy of its verdict.

Run: python docs/map.py
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

import bptt

PICTURE = Path(__file__).with_suffix(".png")
LEAST, LARGEST = 1e-12, 1.0  # ends of the colour scale


def squared(outputs: torch.Tensor) -> torch.Tensor:
    """Sum of squares: over all steps, a loss at each of them."""
    return outputs.square().sum()


def draw(axes: Axes, lstm: torch.nn.LSTM, x: torch.Tensor) -> bptt.flow.Finding:
    """Draw ‖term(t, k)‖ for W_hh, as a share of the largest in row t; return the verdict on the README's loss."""
    with bptt.watch(lstm) as flow:
        squared(lstm(x)[0][-1]).backward()
    (finding,) = flow.verdict()
    layer = flow["lstm.l0"]
    norms = bptt.gradient_map(lstm, x, loss=squared, samples=[0]).norms("weight_hh_l0")[0]
    share = norms / norms.amax(1, keepdim=True)  # the first row is empty: no state comes before the first step
    shown = torch.where(norms > 0, share.clamp_min(LEAST), torch.nan).numpy()
    axes.imshow(shown, cmap="cividis", norm=LogNorm(LEAST, LARGEST))
    axes.set_title(f"{finding.verdict}: a gradient reaches {layer.horizon} of {layer.lags} steps back", fontsize=11)
    axes.set_xlabel("earlier step k")
    axes.spines[["top", "right"]].set_visible(False)
    return finding


def main(path: Path = PICTURE) -> None:
    """Write two maps with one colour scale to `path`."""
    torch.manual_seed(0)
    lstm, x = torch.nn.LSTM(8, 32), torch.randn(100, 4, 8)
    figure, (before, after) = plt.subplots(1, 2, figsize=(9.6, 4.4), layout="constrained", sharey=True)
    draw(before, lstm, x).remedies[0].apply(lstm)
    draw(after, lstm, x)
    before.set_ylabel("loss step t")
    figure.colorbar(after.images[0], ax=[before, after], label="‖term (t, k)‖ / largest in row t", shrink=0.85)
    figure.savefig(path, dpi=100, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
