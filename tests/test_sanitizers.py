"""The native core's tests once more, under the address and undefined-behaviour sanitizers, in every instruction set here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import hatch_build
import pytest

ROOT = Path(__file__).parents[1]
FILES = [str(ROOT / "tests" / name) for name in ("test_cpu_kernel.py", "test_extremes.py")]
CHECKS = (
    "reference or known or special or strides or python_threads or fork or twice or more_threads or bfloat16 or extreme"
)
SETS = {"baseline": [], "avx2": hatch_build.AVX2, "avx512": hatch_build.AVX512}
_RUN = """
import pytest, sys
from bptt.kernels.cpu import library
assert library().instructions == sys.argv[1], library().instructions
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--timeout", "3600", "-k", *sys.argv[2:]]))
"""


@pytest.fixture(scope="session")
def checked_core(tmp_path_factory):
    """The core built with both sanitizers; -O1, since it is made to be checked, not to be fast."""
    path = tmp_path_factory.mktemp("core") / "libbptt.so"
    flags = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    assert hatch_build.compile_core(ROOT / hatch_build.SOURCE, path, flags)
    return path


def _supported(name):
    flags = (Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else "").split()
    return name == "baseline" or (name in flags if name == "avx2" else "avx512bw" in flags)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [name for name in SETS if _supported(name)])
def test_no_sanitizer_complains(name, checked_core):
    gcc = shutil.which("gcc")
    assert gcc is not None
    libraries = [
        subprocess.run([gcc, f"-print-file-name={n}"], capture_output=True, text=True, check=True).stdout.strip()
        for n in ("libasan.so", "libubsan.so")
    ]
    environment = os.environ | {
        "BPTT_CORE": str(checked_core),
        "BPTT_ISA": name,
        "HYPOTHESIS_PROFILE": "quick",
        "LD_PRELOAD": " ".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",  # Python itself never frees some of its memory
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    }
    command = [sys.executable, "-c", _RUN, name, CHECKS, *FILES]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=ROOT)
    assert result.returncode == 0, (result.stdout + result.stderr)[-5000:]
