"""What is published: metadata, the wheel's and the sdist's files, the platform tag, types that a user's mypy finds.

The wheel here holds the core that is installed already; `make wheel` compiles one, and tries it out without a compiler.
"""

import email
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import hatch_build
import pytest
import torch
from release.wheel import MOST_BYTES

import bptt
from bptt.kernels import cpu

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "bptt"


def _hatchling(folder, kind, **environment):
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, env=os.environ | environment, check=True, capture_output=True)
    return next(folder.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel's file."""
    if not cpu._CORE.exists():
        pytest.skip(cpu.NOT_BUILT)
    return _hatchling(tmp_path_factory.mktemp("wheel"), "wheel", BPTT_CORE=str(cpu._CORE))


@pytest.fixture(scope="module")
def files(wheel):
    """The contents of the files in the wheel, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _about(files, name):
    return email.message_from_bytes(next(text for at, text in files.items() if at.endswith(f".dist-info/{name}")))


def test_metadata_is_complete(files):
    metadata = _about(files, "METADATA")
    assert metadata["Name"] == "bptt"
    assert metadata["Version"] == bptt.__version__
    assert metadata["License-Expression"] == "BSD-3-Clause"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Author"] == "the bptt contributors"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata["Summary"]
    assert metadata["Keywords"]
    assert "Typing :: Typed" in metadata.get_all("Classifier")
    assert "torch>=2.10" in metadata.get_all("Requires-Dist")
    assert any(text.startswith(b"BSD 3-Clause License") for name, text in files.items() if name.endswith("/LICENSE"))


def test_the_version_stands_in_one_place():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "version" not in project
    assert "version" in project["dynamic"]
    assert "\nversion:" not in (ROOT / "CITATION.cff").read_text()
    code = "import sys, bptt; assert bptt.__version__; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_wheel_holds_the_package_and_the_core_once(files):
    made = {f"bptt/kernels/csrc/{cpu._CORE.name}"}
    ours = {name for name in files if name.startswith("bptt/")}
    skipped = {".so", ".dylib", ".new", ".pyc", ".ts"}
    source = {
        f"bptt/{path.relative_to(SOURCE).as_posix()}"
        for path in SOURCE.rglob("*")
        if path.is_file() and path.suffix not in skipped
    }
    assert ours == source | made
    assert {name.split("/")[0] for name in files} == {"bptt", f"bptt-{bptt.__version__}.dist-info"}
    assert "bptt/py.typed" in ours
    assert [name for name in ours if name.endswith((".html", ".j2"))], "no templates"
    assert files[f"bptt/kernels/csrc/{cpu._CORE.name}"] == cpu._CORE.read_bytes()


def test_the_wheel_is_small(wheel):
    assert wheel.stat().st_size <= MOST_BYTES


def test_the_tag_is_that_of_the_core(wheel, files):
    tag = hatch_build.platform_tag(cpu._CORE)
    assert wheel.name == f"bptt-{bptt.__version__}-py3-none-{tag}.whl"
    about = _about(files, "WHEEL")
    assert about["Tag"] == f"py3-none-{tag}"
    assert about["Root-Is-Purelib"] == "false"


def _elf(*strings, machine=62):
    header = bytearray(64)
    header[:4], header[18] = b"\x7fELF", machine
    return bytes(header) + b"\0".join([b"", *(s.encode() for s in strings), b""])


@pytest.mark.parametrize(
    ("content", "tag"),
    [
        (_elf("libc.so.6", "GLIBC_2.2.5", "GLIBC_2.28"), "manylinux_2_28_x86_64"),
        (_elf("libc.so.6", "ld-linux-aarch64.so.1", "GLIBC_2.17", machine=183), "manylinux_2_28_aarch64"),
        (_elf("libc.so.6", "libstdc++.so.6", "GLIBC_2.17", "GLIBCXX_3.4.24"), "manylinux_2_28_x86_64"),
        (_elf("libc.so.6", "libstdc++.so.6", "GLIBC_2.17", "GLIBCXX_3.4.25"), "linux_x86_64"),
        (_elf("libc.so.6", "GLIBC_2.29"), "linux_x86_64"),
        (_elf("libc.so.6", "GLIBC_2.17", "GLIBC_PRIVATE"), "linux_x86_64"),
        (_elf("libc.so.6", "libgomp.so.1", "GLIBC_2.17"), "linux_x86_64"),
        (_elf("libc.musl-x86_64.so.1"), "linux_x86_64"),
        (b"\xcf\xfa\xed\xfe\x0c\x00\x00\x01" + bytes(24), "macosx_11_0_arm64"),
    ],
)
def test_a_tag_claims_no_more_than_the_library_needs(tmp_path, content, tag):
    library = tmp_path / "libbptt.so"
    library.write_bytes(content)
    assert hatch_build.platform_tag(library) == tag


def test_without_a_compiler_the_wheel_is_pure_python(tmp_path):
    built = _hatchling(tmp_path, "wheel", PATH=str(tmp_path / "nowhere"), CXX="")
    assert built.name == f"bptt-{bptt.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(built) as archive:
        assert not [name for name in archive.namelist() if name.endswith((".so", ".dylib"))]


def test_the_sdist_holds_what_builds_and_tests_it(tmp_path):
    with tarfile.open(_hatchling(tmp_path, "sdist")) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames()}
    assert names >= {
        "LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff", "PKG-INFO", "pyproject.toml", "hatch_build.py", "Makefile",
        "tests/test_publishing.py", "tests/native/driver.cpp", "release/smoke.py", "src/bptt/py.typed",
    }  # fmt: skip
    assert {f"src/bptt/kernels/csrc/{path.name}" for path in SOURCE.glob("kernels/csrc/*.cpp")} <= names
    assert not [name for name in names if name.endswith((".so", ".new", ".pyc"))]


FAKE_COMPILER = """#!/bin/sh
# Says for which machine it compiles, writes its arguments into a file, and an empty file for each output.
if [ "$1" = -dumpmachine ]; then echo TARGET; exit; fi
echo "$@" >> LOG
while [ "$1" != -o ]; do shift; done
: > "$2"
"""


@pytest.fixture
def commands_for(tmp_path, monkeypatch):
    """Calls `build` with a fake compiler for `target`: the arguments of each of its runs, the last of which links."""

    def run(target, build):
        log, compiler = tmp_path / f"{target}.log", tmp_path / "c++"
        compiler.write_text(FAKE_COMPILER.replace("TARGET", target).replace("LOG", str(log)))
        compiler.chmod(0o755)
        monkeypatch.setenv("CXX", str(compiler))
        build()
        return [line.split() for line in log.read_text().splitlines()]

    return run


@pytest.mark.parametrize(
    ("target", "library", "instruction_sets"),
    [
        ("x86_64-linux-gnu", "libbptt.so", [[], hatch_build.AVX2, hatch_build.AVX512, hatch_build.AVX512_BF16]),
        ("aarch64-linux-gnu", "libbptt.so", [[]]),
        ("arm64-apple-darwin23.6.0", "libbptt.dylib", [[]]),
    ],
)
def test_the_compiler_s_target_decides_what_is_compiled(tmp_path, commands_for, target, library, instruction_sets):
    source = ROOT / hatch_build.SOURCE
    *compiled, linked = commands_for(target, lambda: hatch_build.compile_into(source, tmp_path, stripped=True))
    assert (tmp_path / library).exists()
    assert ["-Wl,-x" if library.endswith(".dylib") else "-s"] == [flag for flag in linked if flag in ("-s", "-Wl,-x")]
    assert all(("-DBPTT_BASELINE_ONLY" in command) == (len(instruction_sets) == 1) for command in compiled)
    assert all(("-mmacosx-version-min=11.0" in command) == ("apple" in target) for command in (*compiled, linked))
    for file in source.glob("*.cpp"):
        runs = [
            {flag for flag in c if flag.startswith(("-mavx", "-mfma", "-mpref"))} for c in compiled if str(file) in c
        ]
        wanted = [set()] if file.stem in hatch_build.COMPILED_ONCE else [set(flags) for flags in instruction_sets]
        assert sorted(runs, key=len) == wanted


def test_an_editable_installation_has_the_core_with_its_symbols_in_the_source_folder(tmp_path, commands_for):
    project = tmp_path / "project"
    shutil.copytree(SOURCE, project / "src" / "bptt", ignore=shutil.ignore_patterns("*.so", "*.new", "__pycache__"))
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, project)
    install = [sys.executable, "-c", "import hatchling.build as b; b.build_editable('..')"]
    linked = commands_for("x86_64-linux-gnu", lambda: subprocess.run(install, cwd=project, check=True))[-1]
    assert "-s" not in linked
    assert (project / hatch_build.SOURCE / "libbptt.so").exists()
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".so")]


PROGRAM = """
import torch

import bptt

layer: bptt.LSTM = bptt.LSTM(3, 8)
x: torch.Tensor = torch.randn(20, 2, 3)
result: bptt.Result = bptt.backward(layer, x, x, lambda h, y: h.sum(), bptt.Truncated(k1=5))
with bptt.watch(layer) as flow:
    findings: list[str] = [str(finding) for finding in flow.verdict()]
version: int = bptt.__version__
strategy: bptt.Strategy = bptt.Truncated("five")
"""


@pytest.mark.slow
def test_mypy_finds_the_types_of_the_installed_package(tmp_path, wheel):
    # An environment with the wheel, which sees torch where it is installed here, but not the bptt that is: that one is
    # installed by a .pth file, and these are not followed from another one.
    venv.create(tmp_path / "environment", symlinks=True)
    site = next((tmp_path / "environment" / "lib").glob("python*")) / "site-packages"
    (site / "torch.pth").write_text(str(Path(torch.__file__).parents[1]))
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {name: value for name, value in os.environ.items() if name not in ("MYPYPATH", "PYTHONPATH")}
    python = tmp_path / "environment" / "bin" / "python"
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "program.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [line.split(": error: ")[0] for line in errors] == ["program.py:11", "program.py:12"], (
        done.stdout + done.stderr
    )
    assert '"str"' in errors[0]
    assert "Truncated" in errors[1]


def test_public_files_are_there_and_readable():
    for name in ("SECURITY.md", "RELEASE.md", "CITATION.cff", ".github/pull_request_template.md"):
        assert (ROOT / name).read_text().strip()
    assert list((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
