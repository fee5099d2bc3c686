"""Builds the native core, src/bptt/kernels/csrc/libbptt.so, when the package is installed; gcc or clang is all it needs.

One file a set of instructions from the same source; which of them runs is decided when the core is loaded. Without a
compiler the installation still succeeds, and bptt runs on torch's own operators.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/bptt/kernels/csrc")
LIBRARY = SOURCE / "libbptt.so"  # not beside the modules, among which Python would count it
LANGUAGE = ["-std=c++17", "-fPIC", "-Wno-psabi", "-fvisibility=hidden"]
FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mprefer-vector-width=512"]
AVX512_BF16 = [*AVX512, "-mavx512bf16"]


class NativeCore(BuildHookInterface):  # type: ignore[type-arg]
    """Runs at `pip install`, also at `pip install --editable`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and put the library into the wheel if that worked."""
        root = Path(self.root)
        if self.target_name != "wheel" or not _build(root):
            return
        build_data["artifacts"].append(str(LIBRARY))
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{sys.platform}_{platform.machine()}"


def _build(root: Path) -> bool:
    new = root / LIBRARY.with_suffix(".new")
    if not compile_core(root / SOURCE, new, FLAGS):
        return False
    new.replace(root / LIBRARY)  # a process that has the old one open keeps it
    return True


def compile_core(source: Path, library: Path, flags: list[str], objects: Path | None = None) -> bool:
    """Compile one object file a set of instructions, and link the library of them all.

    The objects stay in the folder `objects`, if one is given, in the order in which they are linked. Returns False, with a
    word on stderr, if that fails.
    """
    compiler = os.environ.get("CXX") or next((c for c in ("g++", "clang++") if shutil.which(c)), None)
    if compiler is None or sys.platform != "linux":
        print("bptt: no C++ compiler found: bptt will run on torch's own operators", file=sys.stderr)
        return False
    variants = [("api", []), ("isa", []), ("isa", AVX2), ("isa", AVX512), ("isa", AVX512_BF16)]
    if platform.machine() not in ("x86_64", "AMD64"):
        variants = [("api", ["-DBPTT_BASELINE_ONLY"]), ("isa", [])]
    with tempfile.TemporaryDirectory() as scratch:
        targets = [str((objects or Path(scratch)) / f"{i}.o") for i in range(len(variants))]
        commands = [
            [compiler, *LANGUAGE, *flags, *instructions, "-c", str(source / f"{name}.cpp"), "-o", target]
            for (name, instructions), target in zip(variants, targets, strict=True)
        ]
        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(_run, commands))
            _run([compiler, *flags, "-shared", *targets, "-o", str(library)])
        except (OSError, subprocess.CalledProcessError) as error:
            print(
                f"bptt: the native core could not be built ({error}): bptt will run on torch's operators",
                file=sys.stderr,
            )
            return False
    return True


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)
