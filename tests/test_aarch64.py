"""The native core on ARM: cross-compiled, and run by an emulator on stored cases, since there is no torch for it here."""

import shutil
import subprocess
from pathlib import Path

import hatch_build
import pytest

ROOT = Path(__file__).parents[1]
COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
MISSING = [name for name in (COMPILER, EMULATOR) if shutil.which(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs {' and '.join(MISSING)} (Debian: g++-aarch64-linux-gnu, qemu-user)")
def test_forward_and_backward_are_right_on_aarch64(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", COMPILER)
    source = ROOT / hatch_build.SOURCE
    library = hatch_build.compile_into(source, tmp_path)
    assert library == tmp_path / "libbptt.so"
    assert hatch_build.platform_tag(library) == "manylinux_2_28_aarch64"
    driver = tmp_path / "driver"
    build = [COMPILER, "-std=c++17", "-O1", f"-I{source}", str(ROOT / "tests/native/driver.cpp"), str(library)]
    subprocess.run([*build, f"-Wl,-rpath,{tmp_path}", "-o", str(driver)], check=True)
    # What the emulated program takes for /: the cross compiler's libraries.
    command = [
        EMULATOR,
        "-L",
        f"/usr/{COMPILER.removesuffix('-g++')}",
        str(driver),
        str(ROOT / "tests/native/cases.txt"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("baseline: ")
