"""One binary for every processor: no code of a larger instruction set is reached, or shared by the linker, by accident."""

import ctypes
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

import hatch_build
import pytest

from bptt.kernels.cpu import Problem
from tests.native import make_cases

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "tests" / "native"
WEAK = "WwVvu"  # what `nm` calls symbols of which the linker keeps one of several
LARGER_SETS = ("avx2", "avx512", "avx512_bf16")

needs_binutils = pytest.mark.skipif(
    platform.machine() != "x86_64" or not (shutil.which("nm") and shutil.which("objdump")),
    reason="it reads x86-64 machine code with binutils' nm and objdump, and one of these is missing",
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="it compiles, and there is no g++")


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """The folder of the object files and the library, built as an installation builds them."""
    folder = tmp_path_factory.mktemp("core")
    library = folder / "libbptt.so"
    assert hatch_build.compile_core(ROOT / hatch_build.SOURCE, library, hatch_build.FLAGS, objects=folder)
    return folder


def _output(*command):
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=True).stdout


def weak_symbols(binary):
    """Return the names of those symbols of which the linker, given several, keeps any one."""
    lines = (line.split() for line in _output("nm", binary).splitlines())
    return {words[-1] for words in lines if len(words) > 2 and words[-2] in WEAK}


def functions_with_vex(binary):
    """Return the names of the functions that hold an instruction encoded with VEX or EVEX: AVX and everything later.

    In 64-bit mode such an instruction begins with c4, c5 or 62, and no other does; a segment or address prefix may precede.
    """
    found, function = set(), ""
    for line in _output("objdump", "-d", "--wide", "--insn-width=16", binary).splitlines():
        if heading := re.match(r"[0-9a-f]+ <(.+)>:$", line):
            function = heading[1]
        elif re.match(r" *[0-9a-f]+:\t(?:(?:26|2e|36|3e|64|65|67) )*(?:c4|c5|62) ", line):
            found.add(function)
    return found


def outside_of_the_larger_sets(functions):
    """Return those that are not in the namespace of a larger instruction set, by their mangled names."""
    spaces = [f"4bptt{len(name)}{name}" for name in LARGER_SETS]
    return {name for name in functions if not any(space in name for space in spaces)}


@needs_binutils
@needs_compiler
def test_no_symbol_that_the_linker_may_merge_holds_code_of_a_larger_set(built):
    objects = sorted(built.glob("*.o"))
    assert len(objects) == 5
    for binary in (*objects, built / "libbptt.so"):
        merged = weak_symbols(binary) & functions_with_vex(binary)
        assert not merged, f"{binary.name}: {sorted(merged)}"
    assert functions_with_vex(built / "libbptt.so"), "this test no longer sees AVX instructions"


@needs_binutils
@needs_compiler
def test_code_of_a_larger_set_lies_in_its_namespace(built):
    """So nothing of it runs before `bptt_run` has chosen the set: no initializer, and nothing of the C++ library."""
    stray = outside_of_the_larger_sets(functions_with_vex(built / "libbptt.so"))
    assert not stray, sorted(stray)


@needs_binutils
@needs_compiler
def test_it_would_see_a_function_that_two_sets_share(tmp_path):
    """An inline function of two units, one compiled for AVX2 and linked first: the one that the linker keeps for both."""
    (tmp_path / "shared.h").write_text(
        "__attribute__((noinline)) inline void twice(float* x) { for (int i = 0; i < 64; ++i) x[i] *= 2; }"
    )
    objects = []
    for name, flags in (("avx2", ["-mavx2"]), ("baseline", [])):
        source, target = tmp_path / f"{name}.cpp", tmp_path / f"{name}.o"
        source.write_text(f'#include "shared.h"\nvoid {name}(float* x) {{ twice(x); }}\n')
        _output("g++", "-O3", "-fPIC", *flags, "-c", source, "-o", target)
        objects.append(target)
    library = tmp_path / "library.so"
    _output("g++", "-shared", *objects, "-o", library)
    assert weak_symbols(library) & functions_with_vex(library) == {"_Z5twicePf"}
    assert "_Z5twicePf" in outside_of_the_larger_sets(functions_with_vex(library))


@needs_compiler
@pytest.mark.parametrize("order", [1, -1], ids=["as linked", "reversed"])
def test_an_old_processor_runs_it(built, tmp_path, order):
    """Nehalem has no AVX; forward and backward of every cell against stored numbers, whichever object is linked first."""
    emulator = shutil.which("qemu-x86_64")
    if emulator is None or platform.machine() != "x86_64":
        pytest.skip("there is no qemu-x86_64, or this is not x86-64")
    library, driver = tmp_path / "libbptt.so", tmp_path / "driver"
    objects = sorted(built.glob("*.o"))[::order]
    _output("g++", "-shared", *objects, "-o", library)
    include = ROOT / hatch_build.SOURCE
    _output(
        "g++",
        "-std=c++17",
        "-O1",
        f"-I{include}",
        NATIVE / "driver.cpp",
        library,
        f"-Wl,-rpath,{tmp_path}",
        "-o",
        driver,
    )
    environment = {name: value for name, value in os.environ.items() if name != "BPTT_ISA"}
    command = [emulator, "-cpu", "Nehalem", str(driver), str(make_cases.CASES)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.startswith("baseline: "), result.stdout


def test_the_stored_cases_are_the_references():
    """Letter by letter but for the numbers, which another processor may round otherwise."""
    for stored, found in zip(make_cases.CASES.read_text().split(), make_cases.text().split(), strict=True):
        assert stored == found or float(stored) == pytest.approx(float(found), rel=1e-10, abs=1e-12)


def test_the_structure_has_the_fields_of_problem_h():
    """Names, order and types, as the header declares them."""
    header = (ROOT / hatch_build.SOURCE / "problem.h").read_text()
    body = re.search(r"typedef struct \{(.*?)\} bptt_problem;", header, re.DOTALL)[1]
    declared = []
    for declaration in re.sub(r"//.*", "", body).split(";"):
        if not declaration.strip():
            continue
        kind, names = re.match(r"\s*(?:const )?(\w+)\s*(.*)", declaration, re.DOTALL).groups()
        for name in names.split(","):
            is_pointer = "*" in name
            assert is_pointer or kind == "int64_t"
            declared.append((name.strip("* \n"), ctypes.c_void_p if is_pointer else ctypes.c_int64))
    assert declared == list(Problem._fields_)
