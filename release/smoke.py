"""Tries out an installed bptt, as its user would, and exits with an error at the first thing that is wrong.

    cd EMPTY_FOLDER && python -I smoke.py [--without-core]

Only torch and bptt are needed. With the core, every cell must be run by it, and a training step must give the weights that
the reference kernel gives; `--without-core` is for a bptt that was installed without a compiler, which must compute the same
on torch's operators. The command line and the pages, whose templates the wheel brings, are tried as well.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

BOUNDS = {"float64": 1e-10, "float32": 1e-5}  # of the relative error in norm
COMPILERS = ("cc", "gcc", "g++", "c++", "clang", "clang++")


def main() -> None:
    """Run all checks in the current folder."""
    with_core = "--without-core" not in sys.argv[1:]
    check_surroundings()
    check_kernels(with_core)
    check_pages()
    check_command_line()
    print("the installed bptt works" + ("" if with_core else " without its core"))


def check_surroundings() -> None:
    """The bptt that is tried is the installed one, it knows its version without torch, and no compiler is in reach."""
    import bptt

    assert Path(bptt.__file__).is_relative_to(sys.prefix), f"{bptt.__file__} is not what was installed in {sys.prefix}"
    assert bptt.__version__ == importlib.metadata.version("bptt")
    assert "torch" not in sys.modules, "bptt.__version__ imported torch"
    found = [path for name in COMPILERS if (path := shutil.which(name))]
    assert not found, f"a compiler is in reach: {found}"


def check_kernels(with_core: bool) -> None:
    """A training step of each cell and number format gives the same weights as on the reference kernel."""
    import torch

    import bptt

    layers = {
        "RNN, tanh": lambda **how: bptt.RNN(5, 7, **how),
        "RNN, relu": lambda **how: bptt.RNN(5, 7, nonlinearity="relu", **how),
        "GRU": lambda **how: bptt.GRU(5, 7, num_layers=2, **how),
        "LSTM": lambda **how: bptt.LSTM(5, 7, bidirectional=True, **how),
        "LSTM, projected": lambda **how: bptt.LSTM(5, 7, proj_size=3, **how),
    }
    torch.manual_seed(1)
    for name, make in layers.items():
        for number_format, bound in BOUNDS.items():
            dtype = getattr(torch, number_format)
            x = torch.randn(12, 3, 5, dtype=dtype)
            layer, plain = make(dtype=dtype), make(dtype=dtype, backend="reference")
            plain.load_state_dict(layer.state_dict())
            assert _runs_on_core(make(dtype=dtype, backend="cpu"), x) == with_core
            found, wanted = _trained(layer, x), _trained(plain, x)
            error = float((found - wanted).norm() / wanted.norm())
            assert error <= bound, f"{name}, {number_format}: relative error {error:.1e}"
            print(
                f"{name}, {number_format}: {'the core' if with_core else 'torch'} runs it, relative error {error:.0e}"
            )


def _runs_on_core(layer: Any, x: Any) -> bool:
    """Whether the native core runs the layer, which was made to insist on it; if not, the core must be missing."""
    try:
        layer(x)
    except RuntimeError as refused:
        if "the native core was not built" in str(refused):
            return False
        raise
    return True


def _trained(layer: Any, x: Any) -> Any:
    """All weights of the layer after one step of gradient descent."""
    import torch

    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    with warnings.catch_warnings():  # once, that the core is missing
        warnings.simplefilter("ignore")
        layer(x)[0].square().sum().backward()
    optimizer.step()
    return torch.cat([p.detach().flatten() for p in layer.parameters()])


def check_pages() -> None:
    """The lecture's page and the report of a watched step are written, from the templates in the wheel."""
    import torch

    import bptt

    assert bptt.explaining.write("lecture.html").stat().st_size > 100_000
    layer = bptt.LSTM(3, 8)
    with bptt.watch(layer) as flow:
        layer(torch.randn(20, 2, 3))[0].square().mean().backward()
    assert flow.verdict()
    flow.report("flow.html")
    assert Path("flow.html").stat().st_size > 1000


def check_command_line() -> None:
    """`bptt --help` and a short training run, which writes its folder and report."""
    assert "usage" in _run("bptt", "--help").lower()
    _run("bptt", "train", "adding", "--steps", "5")
    run = Path("runs/adding-1")
    for name in ("model.safetensors", "config.json", "metrics.jsonl", "report.html"):
        assert (run / name).exists(), f"the run wrote no {name}, only {os.listdir(run)}"


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
    return done.stdout


if __name__ == "__main__":
    main()
