"""Builds the native core, bptt/kernels/csrc/libbptt, when the package is installed; a C++ compiler is all that it needs.

The compiler is $CXX, g++ or clang++. Each instruction set gets object files of its own from the same source; which of them
runs is decided when the core is loaded. Without a compiler the installation still succeeds, and bptt runs on torch's own
operators. $BPTT_CORE names a library that is already built, to be put into the wheel instead.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("src/bptt/kernels/csrc")
IN_WHEEL = "bptt/kernels/csrc"  # not beside the modules, where Python would take the library for one of them
LANGUAGE = ["-std=c++17", "-fPIC", "-Wno-psabi", "-fvisibility=hidden"]
FLAGS = ["-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
AVX2 = ["-mavx2", "-mfma"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mprefer-vector-width=512"]
AVX512_BF16 = [*AVX512, "-mavx512bf16"]
COMPILED_ONCE = {"api"}  # every other .cpp file is compiled for each instruction set

# A Linux wheel claims the platform of torch's own wheels, manylinux_2_28: systems with glibc 2.28 and GCC 8's libstdc++.
# This holds as long as the library asks them for nothing newer, and for no other library. libstdc++ is linked dynamically:
# a static one needs symbols of the build machine's glibc (2.36 on Debian 12), and torch, which is loaded first, brings the
# shared one. The unwinder, libgcc_s, must be the shared one as well, since exceptions pass through torch's frames.
MANYLINUX = "manylinux_2_28"
NEWEST_SYMBOLS = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (7, 0, 0)}
SYSTEM_LIBRARIES = re.compile(r"lib(c|m|stdc\+\+|gcc_s)\.so\.\d+|ld-linux-[\w-]+\.so\.\d+")
ELF_MACHINES = {62: "x86_64", 183: "aarch64"}
MACH_O_MACHINES = {0x01000007: "x86_64", 0x0100000C: "arm64"}
OLDEST_MACOS = os.environ.get("MACOSX_DEPLOYMENT_TARGET", "11.0")  # macOS is untested: nobody has run it there yet


class NativeCore(BuildHookInterface):  # type: ignore[type-arg]
    """Runs at `pip install`, also at `pip install --editable`, and when a wheel is built."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the core: into the source folder for an editable installation, else into the wheel alone."""
        if self.target_name != "wheel":
            return
        source = Path(self.root) / SOURCE
        if version == "editable":
            compile_into(source, source)
            return
        self.scratch = tempfile.TemporaryDirectory()
        library = _already_built() or compile_into(source, Path(self.scratch.name), stripped=True)
        if library is not None:
            build_data["force_include"][str(library)] = f"{IN_WHEEL}/libbptt{library.suffix}"
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag(library)}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the library, which the wheel has now."""
        if hasattr(self, "scratch"):
            self.scratch.cleanup()


def _already_built() -> Path | None:
    named = os.environ.get("BPTT_CORE")
    return Path(named).absolute() if named else None


def compile_into(source: Path, folder: Path, stripped: bool = False) -> Path | None:
    """Compile the core of the folder `source` to libbptt.so, or .dylib, in `folder`: the library, or None if that fails."""
    compiler = find_compiler()
    library = folder / ("libbptt.dylib" if compiler and _is_macos(target_of(compiler)) else "libbptt.so")
    new = library.with_suffix(".new")
    if not compile_core(source, new, FLAGS, stripped):
        return None
    return new.replace(library)  # a process that has the old one open keeps it


def compile_core(
    source: Path, library: Path, flags: Sequence[str], stripped: bool = False, objects: Path | None = None
) -> bool:
    """Compile and link the core; False, with the reason on stderr, if there is no compiler or it fails.

    Args:
        source: the folder of the C++ files.
        library: the file to write.
        flags: of the optimisation, say.
        stripped: leave out the names of internal functions, which only debuggers and profilers read.
        objects: a folder in which the object files stay; by name they are in the order in which they are linked.
    """
    compiler = find_compiler()
    if compiler is None:
        print("bptt: no C++ compiler found: bptt will run on torch's own operators", file=sys.stderr)
        return False
    try:
        with tempfile.TemporaryDirectory() as scratch:
            _compile_and_link(compiler, source, library, flags, stripped, objects or Path(scratch))
    except (OSError, subprocess.CalledProcessError) as error:
        print(
            f"bptt: the native core could not be built ({error}): bptt will run on torch's operators", file=sys.stderr
        )
        return False
    return True


def find_compiler() -> list[str] | None:
    """Return the C++ compiler's command, $CXX if that is set; None where there is none."""
    if sys.platform not in ("linux", "darwin"):
        return None
    named = os.environ.get("CXX") or next((c for c in ("g++", "clang++") if shutil.which(c)), None)
    return shlex.split(named) if named else None


def target_of(compiler: list[str]) -> str:
    """Return what the compiler compiles for, "aarch64-linux-gnu" or "arm64-apple-darwin23", which may be another machine."""
    try:
        return subprocess.run([*compiler, "-dumpmachine"], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""  # compiling will say why


def _is_macos(target: str) -> bool:
    return "darwin" in target or "macos" in target


def _compile_and_link(
    compiler: list[str], source: Path, library: Path, flags: Sequence[str], stripped: bool, objects: Path
) -> None:
    target = target_of(compiler)
    on_x86, on_mac = target.startswith("x86_64"), _is_macos(target)
    instruction_sets = [[], AVX2, AVX512, AVX512_BF16] if on_x86 else [[]]
    system = [f"-mmacosx-version-min={OLDEST_MACOS}"] if on_mac else []
    general = [*system, *LANGUAGE, *flags, *([] if on_x86 else ["-DBPTT_BASELINE_ONLY"])]
    strip = ["-Wl,-x" if on_mac else "-s"] if stripped else []
    jobs = [
        (file, instructions, objects / f"{file.stem}{i}.o")
        for file in sorted(source.glob("*.cpp"))
        for i, instructions in enumerate([[]] if file.stem in COMPILED_ONCE else instruction_sets)
    ]
    compilations = [
        [*compiler, *general, *instructions, "-c", str(file), "-o", str(made)] for file, instructions, made in jobs
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, compilations))
    _run([*compiler, *system, *flags, "-shared", *strip, *(str(made) for *_, made in jobs), "-o", str(library)])


def _run(command: list[str]) -> None:
    subprocess.run(command, check=True)


def platform_tag(library: Path) -> str:
    """Return the platforms that the library runs on, as a wheel's name states them.

    "manylinux_2_28_x86_64" is installed on any machine with such a system; "linux_x86_64", of a library that needs more than
    `NEWEST_SYMBOLS`, only where it was built, and no index takes it.
    """
    content = library.read_bytes()
    if content[:4] == b"\x7fELF":
        machine = ELF_MACHINES.get(int.from_bytes(content[18:20], "little"), "unknown")
        return f"{'linux' if needs_beyond_manylinux(library) else MANYLINUX}_{machine}"
    machine = MACH_O_MACHINES[int.from_bytes(content[4:8], "little")]
    return f"macosx_{OLDEST_MACOS.replace('.', '_')}_{machine}"


def needs_beyond_manylinux(library: Path) -> list[str]:
    """Return the symbol versions and libraries that the library needs, and the systems of `MANYLINUX` do not have."""
    strings = {name.decode() for name in re.findall(rb"(?<=\0)[\w.+-]+(?=\0)", library.read_bytes())}
    versions = [match for name in strings if (match := re.fullmatch(r"(GLIBC|GLIBCXX|CXXABI|GCC)_(\w[\w.]*)", name))]
    too_new = [match[0] for match in versions if not _is_old_enough(match[1], match[2])]
    if not any(match[1] == "GLIBC" for match in versions):
        too_new.append("another C library than glibc")
    libraries = [name for name in strings if re.fullmatch(r"(lib|ld-)[\w+-]+\.so(\.\d+)*", name)]
    return sorted(too_new + [name for name in libraries if not SYSTEM_LIBRARIES.fullmatch(name)])


def _is_old_enough(name: str, version: str) -> bool:
    numbers = version.split(".")
    return all(map(str.isdigit, numbers)) and tuple(map(int, numbers)) <= NEWEST_SYMBOLS[name]
