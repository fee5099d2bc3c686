"""The layering, and what importing costs."""

import ast
import graphlib
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import bptt

SOURCE = Path(bptt.__file__).parent
# Each layer may import itself and what stands before it; the leaves may be imported by all.
LEAVES = {"errors", "files", "options", "terminal", "torch_private", "typed", "warning"}
LAYERS = [
    {"cells"}, {"kernels"}, {"forms", "parameters"}, {"layer_input"}, {"overrides", "recording"}, {"layer_base"}, {"layers"},
    {"fusing"}, {"network"},
    {"gradient", "flow"}, {"explaining"}, {"tasks"}, {"train"}, {"bench"}, {"cli"}, {"__main__"},
]  # fmt: skip

# Independent witnesses: neither may rest on the other.
APART = {("flow", "gradient"), ("gradient", "flow")}

# Independent witnesses of the kernels' backward pass: how a gradient travels back follows there from the cells alone. Not so
# in flow's `tracing` and `watching`, which run the native core's backward loop where it serves.
WITNESSES = ("trajectory", "pullback", "pointwise", "by_autograd", "terms", "log_svd")  # of bptt.flow.jacobians
BY_NAME = ("__init__.py", "tasks/__init__.py")  # what may import by a name: the public names, and the task asked for
# What the whole of bptt.flow.jacobians takes of the native core: the forward pass, for the states to start from.
FORWARD = {"serves", "states"}


def test_every_import_is_one_that_these_tests_see():
    """Not relative, and by no name that is made while the program runs, but where BY_NAME says so."""
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}:{node.lineno} is relative"
            if isinstance(node, ast.Name | ast.Attribute) and "import_module" in ast.unparse(node):
                assert path.relative_to(SOURCE).as_posix() in BY_NAME, f"{path}:{node.lineno} imports by name"


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


@cache
def _graph():
    """For each module, as a tuple of names, the modules that it imports: at the top, in functions, and for types alone."""
    files = {_parts(path): path for path in SOURCE.rglob("*.py")}
    return {module: {found for found in _modules(path, files) if found != module} for module, path in files.items()}


def _parts(path):
    return ("bptt", *path.relative_to(SOURCE).with_suffix("").parts)


def _modules(path, files):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = tuple(name.split("."))
            # a module, a package, or a name in one of both
            places = (parts, (*parts, "__init__"), parts[:-1], (*parts[:-1], "__init__"))
            yield from [place for place in places if place in files][:1]


def _circle(graph):
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return " → ".join(".".join(unit) for unit in error.args[1])
    return None


def test_no_circle_between_files():
    assert _circle(_graph()) is None


def test_no_circle_between_the_files_and_folders_of_a_folder():
    folders = {}
    for module, imported in _graph().items():
        for other in imported:
            n = next(i for i, (a, b) in enumerate(zip(module, other, strict=False)) if a != b)
            units = folders.setdefault(module[:n], {})
            units.setdefault(module[: n + 1], set()).add(other[: n + 1])
    circles = {".".join(folder): _circle(units) for folder, units in folders.items()}
    assert {folder: circle for folder, circle in circles.items() if circle} == {}


def _reached(module, graph):
    found, todo = set(), [module]
    while todo:
        new = graph[todo.pop()] - found
        found |= new
        todo += new
    return found


def test_witnesses_of_the_backward_pass_rest_on_the_cells_alone():
    witnesses = {*(("bptt", "flow", "jacobians", name) for name in WITNESSES), ("bptt", "gradient", "double_sum")}
    for witness in witnesses:
        others = {module for module in _reached(witness, _graph()) if module[1] not in ("cells", "torch_private")}
        assert others <= witnesses, witness


def test_jacobians_takes_only_the_forward_pass_from_the_kernels():
    for module, imported in _graph().items():
        if module[:3] != ("bptt", "flow", "jacobians"):
            continue
        assert {other[:3] for other in imported if other[1] == "flow"} <= {module[:3]}, module
        if module[-1] != "forward":
            assert "kernels" not in {other[1] for other in imported}, module
    forward = ast.parse((SOURCE / "flow" / "jacobians" / "forward.py").read_text())
    names = [node for node in ast.walk(forward) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    assert {node.attr for node in names if node.value.id == "cpu"} == FORWARD
    assert ("bptt", "kernels", "cpu") not in {
        ("bptt", *node.module.split(".")[1:])
        for node in ast.walk(forward)
        if isinstance(node, ast.ImportFrom) and node.module
    }, "forward.py takes names out of kernels.cpu: let it say cpu.NAME, which this test reads"


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
