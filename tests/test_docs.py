"""No document claims what was not run or looked up: examples, links, and the names of files."""

import contextlib
import doctest
import importlib
import pkgutil
import re
import runpy
from pathlib import Path

import pytest
import torch

import bptt
from bptt.cli import main

ROOT = Path(__file__).parent.parent
MODULES = [m.name for m in pkgutil.walk_packages(bptt.__path__, "bptt.") if not m.name.endswith("__main__")]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md")))]
WITH_PYTHON = [name for name in DOCUMENTS if "```python" in (ROOT / name).read_text()]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    torch.manual_seed(0)
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def _text(document):
    return (ROOT / document).read_text()


def _blocks(document):
    """(code, output) of each Python block; output is the text block right after it, "" if there is none."""
    return re.findall(r"```python\n(.*?)```(?:\n+```text\n(.*?)```)?", _text(document), flags=re.DOTALL)


def _words(text):
    return " ".join(text.split())


def test_the_first_documents_have_python():
    assert {"README.md", "CONTRIBUTING.md"} <= set(WITH_PYTHON)


@pytest.mark.parametrize("document", WITH_PYTHON)
def test_python_in_the_documents_runs_and_prints_what_they_say(document, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for code, output in _blocks(document):
        exec(compile(code, document, "exec"), {"__name__": "__main__"})
        printed = capsys.readouterr().out
        assert not output or _words(printed) == _words(output)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", _text(document)):
        assert ((ROOT / document).parent / link).exists(), link


def test_every_page_is_reached_from_the_index():
    linked = set(re.findall(r"\]\(([\w-]+\.md)", _text("docs/index.md")))
    assert linked | {"index.md"} == {page.name for page in (ROOT / "docs").glob("*.md")}


COMMAND = re.compile(r"^(?:bptt|torchrun .* -m bptt) (train|predict|inspect|explain|bench)(?: ([a-z]+))?(?= |$)(.*)")


def _commands():
    """(arguments that ask for help, options) of each `bptt` command in the documents' shell blocks."""
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", _text(document), flags=re.DOTALL):
            for found in filter(None, map(COMMAND.match, block.splitlines())):
                command, task, rest = found.groups()
                options = frozenset(re.findall(r"(?<= )--[a-z-]+", rest.partition("#")[0]))
                yield (command, *([task] if command == "train" and task else []), "--help"), options


def test_the_commands_in_the_documents_have_the_options_that_they_use(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    seen = set(_commands())
    assert len(seen) > 5
    for arguments, options in seen:
        with contextlib.suppress(SystemExit):
            main(arguments)
        shown = capsys.readouterr().out
        assert {option for option in options if option not in shown} == set(), arguments


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_scripts_that_the_documents_name_are_there(document):
    for script in re.findall(r"python ([\w/]+\.py)", _text(document)):
        assert (ROOT / script).exists(), script


def _cited(text):
    """The numbers N of "eq. (N)" and "eqs. (N), (M) and (O)", also across a line break."""
    for run in re.findall(r"\b[Ee]qs?\.(?:(?:,|\s|#|//|and|to)*\(\d+\))+", text):
        yield from map(int, re.findall(r"\((\d+)\)", run))


def test_every_equation_that_is_cited_exists():
    numbers = [int(n) for n in re.findall(r"^\*\*\((\d+)\)\*\*", _text("docs/equations.md"), flags=re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    files = [path for folder in ("src", "tests", "examples", "docs") for path in (ROOT / folder).rglob("*")]
    texts = [path for path in files if path.suffix in {".py", ".js", ".mjs", ".md", ".h", ".cpp", ".html", ".j2"}]
    cited = {path.name: set(_cited(path.read_text())) for path in texts if path != Path(__file__)}
    assert {name: found - set(numbers) for name, found in cited.items() if not found <= set(numbers)} == {}
    assert {10, 11} <= set().union(*cited.values())


def test_the_picture_of_the_readme_can_be_made_again(tmp_path):
    runpy.run_path(str(ROOT / "docs/map.py"))["main"](tmp_path / "map.png")
    for picture in (tmp_path / "map.png", ROOT / "docs/map.png"):
        assert 10_000 < picture.stat().st_size < 200_000


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_run(example, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(example.read_text(), str(example), "exec"), {"__name__": "__main__"})
