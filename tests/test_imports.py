"""The layering, and what importing costs."""

import ast
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import bptt

SOURCE = Path(bptt.__file__).parent
# Each layer may import itself and what stands before it; the leaves may be imported by all.
LEAVES = {"errors", "files", "options", "reading", "terminal", "typed", "warning"}
LAYERS = [
    {"cells"}, {"kernels"}, {"forms", "parameters"}, {"overrides", "recording"}, {"layers"}, {"fusing"}, {"network"},
    {"gradient", "flow"}, {"explaining"}, {"tasks"}, {"train"}, {"bench"}, {"cli"}, {"__main__"},
]  # fmt: skip

# Independent witnesses: neither may rest on the other.
APART = {("flow", "gradient"), ("gradient", "flow")}


def _imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "bptt":
            parts = node.module.split(".")
            yield from ([parts[1]] if len(parts) > 1 else [alias.name for alias in node.names])
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("bptt."))


def _layer(name):
    return next(i for i, layer in enumerate(LAYERS) if name in layer)


def test_imports_go_one_way():
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        for other in _imported(path):
            if other in LEAVES or other == "__version__":
                continue
            assert own not in LEAVES, f"{path.name} is a leaf, but imports {other}"
            assert (own, other) not in APART, f"{own}/{path.name} imports {other}, whose answers it is to check"
            assert _layer(other) <= _layer(own), f"{own}/{path.name} imports {other}, which stands above it"


def test_every_public_name_is_there():
    for name in bptt.__all__:
        assert getattr(bptt, name) is not None
    assert set(bptt.__all__) <= set(dir(bptt))


def _fresh(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_import_alone_loads_neither_torch_nor_numpy():
    code = (
        "import sys, bptt, bptt.options; print(sorted({'torch', 'numpy', 'polars', 'matplotlib'} & set(sys.modules)))"
    )
    assert _fresh(code).strip() == "[]"


@pytest.mark.alone
def test_help_answers_at_once_and_without_torch():
    code = (
        "import sys, atexit, bptt.cli\n"
        "atexit.register(lambda: print('torch' in sys.modules))\n"
        "sys.argv = ['bptt', '--help']\n"
        "bptt.cli.main()"
    )
    assert _fresh(code).strip().endswith("False")
    durations = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "bptt", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        durations.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(durations) < 0.3, f"bptt --help took {min(durations):.2f} s of a processor at best"
