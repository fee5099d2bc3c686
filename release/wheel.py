"""Builds the sdist and the wheel of a release into dist/, and tries them out without a compiler: `make wheel`.

1. The sdist is built from this tree, and the wheel from the sdist: so a source installation with a compiler is tried, too.
2. The wheel must hold the core once, stripped, the page and the templates, be small, and have a tag that an index takes.
   auditwheel, which looks at the libraries by itself, must agree with the tag, and twine with the metadata.
3. In a new environment with torch, but no compiler in reach, the wheel is installed and release/smoke.py run.
4. In the same way the sdist, which without a compiler gives a bptt that runs on torch's operators.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

import hatch_build

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
TORCH = "torch==2.13.0"  # by this exact version, as in the Makefile: a range would fetch a CUDA build of several GB
MOST_BYTES = 1_500_000
HIDDEN_VARIABLES = ("CC", "CXX", "PYTHONPATH", "BPTT_CORE", "BPTT_ISA", "MAKEFLAGS")  # may change what is tried
NEEDED_FILES = (
    "bptt/py.typed",
    "bptt/kernels/csrc/libbptt.so",
    "bptt/explaining/page/template.html.j2",
    "bptt/flow/report/templates/page.html",
    "bptt/train/display/templates/run.html",
)


def main() -> None:
    """Build, check and try out; the files are in dist/ at the end."""
    shutil.rmtree(DIST, ignore_errors=True)
    sdist = build_sdist()
    wheel = build_wheel(sdist)
    problems = [*problems_of(wheel), *second_opinion(wheel)]
    if problems:
        sys.exit("not to be released: " + "; ".join(problems))
    _run([sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)])
    with tempfile.TemporaryDirectory() as folder:
        python = new_environment(Path(folder) / "environment")
        try_out(python, wheel)
        try_out(python, sdist, "--without-core")
    print(
        f"{wheel.relative_to(ROOT)}: {wheel.stat().st_size:,} bytes; {sdist.relative_to(ROOT)}: {sdist.stat().st_size:,}"
    )


def build_sdist() -> Path:
    """Build the sdist from the tree."""
    _run([sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(DIST)], cwd=ROOT)
    return next(DIST.glob("*.tar.gz"))


def build_wheel(sdist: Path) -> Path:
    """Build the wheel from the sdist, in an environment of pip's own that has only what pyproject.toml requires."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-cache-dir"]
    environment = {name: value for name, value in os.environ.items() if name != "BPTT_CORE"}
    _run([*pip, "--wheel-dir", str(DIST), str(sdist)], env=environment)
    return next(DIST.glob("*.whl"))


def problems_of(wheel: Path) -> list[str]:
    """Return, as sentences, what speaks against releasing the wheel: its name, its size, its files."""
    problems = []
    if not re.fullmatch(r"bptt-[\w.]+-py3-none-manylinux_\d+_\d+_\w+\.whl", wheel.name):
        problems.append(f"{wheel.name} has no manylinux tag: its core needs {_too_new(wheel) or 'to be compiled'}")
    if wheel.stat().st_size > MOST_BYTES:
        problems.append(f"{wheel.name} has {wheel.stat().st_size:,} bytes, more than {MOST_BYTES:,}")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    problems += [f"{name} is missing" for name in NEEDED_FILES if name not in names]
    libraries = [name for name in names if name.endswith((".so", ".new", ".dylib", ".o"))]
    if len(libraries) != 1:
        problems.append(f"it holds {libraries} instead of one library")
    return problems


def _too_new(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive, tempfile.TemporaryDirectory() as folder:
        cores = [name for name in archive.namelist() if name.endswith(".so")]
        return [
            need for core in cores for need in hatch_build.needs_beyond_manylinux(Path(archive.extract(core, folder)))
        ]


def second_opinion(wheel: Path) -> list[str]:
    """Return what auditwheel, which reads the symbols by itself, has against the wheel's tag."""
    shown = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheel)], capture_output=True, text=True, check=True
    ).stdout
    claimed = re.search(r"manylinux_(\d+)_(\d+)_\w+(?=\.whl)", wheel.name)
    found = re.search(r'following platform tag:\s+"manylinux_(\d+)_(\d+)_', shown)
    if claimed and found and [int(n) for n in found.groups()] <= [int(n) for n in claimed.groups()]:
        return []
    return [f"auditwheel disagrees with the tag: {shown}"]


def new_environment(folder: Path) -> Path:
    """Make a virtual environment with torch: its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", TORCH])
    return python


def try_out(python: Path, package: Path, *how: str) -> None:
    """Install the wheel or sdist; run release/smoke.py in an empty folder, with only the environment's programs in reach."""
    environment = {name: value for name, value in os.environ.items() if name not in HIDDEN_VARIABLES}
    environment["PATH"] = str(python.parent)
    # An installation made a moment ago must not be taken for this one, nor a wheel that was built from the same sdist.
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"]
    _run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", "bptt"], env=environment)
    _run([*pip, str(package)], env=environment)
    with tempfile.TemporaryDirectory() as empty:
        _run([str(python), "-I", str(ROOT / "release" / "smoke.py"), *how], env=environment, cwd=empty)


def _run(command: list[str], **how: object) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, check=True, **how)


if __name__ == "__main__":
    main()
