"""What CONTRIBUTING says of the repository holds: the maps name the files that exist; equations are cited by number."""

import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "bptt"
PAGE_MAP = "src/bptt/explaining/page/README.md"

_FILE_OR_FOLDER = re.compile(r"[\w./-]+(?:/|\.(?:py|js|mjs|h|cpp|css|html|md|toml|cff|yml|yaml))")
_BUILT = {"node_modules", "__pycache__", "build", "dist", "runs"}  # ignored by git, as hidden folders are


def _repository():
    """Yield every file and folder of the repository, as git keeps it."""
    for folder, below, files in os.walk(ROOT):
        below[:] = sorted(n for n in below if n not in _BUILT and (n[0] != "." or n in {".ci", ".github"}))
        yield from (Path(folder) / name for name in below + files)


def _section(document, title):
    """Return the text between a heading of the document and the next one."""
    return (ROOT / document).read_text().split(f"## {title}\n")[1].split("\n## ")[0]


def _named_files(text):
    """Return what the text names, in backticks, that has the form of a file or of a folder."""
    return [name for name in re.findall(r"`([^`]+)`", text) if _FILE_OR_FOLDER.fullmatch(name)]


def _map():
    """Yield (name, paths) of each file or folder that the map names; a row's names lie in its folders, or at the top."""
    for row in _section("CONTRIBUTING.md", "Where things live").splitlines():
        if not row.startswith("| `"):
            continue
        _, first, subject, _ = row.split("|", maxsplit=3)
        owners = [SOURCE / name for name in _named_files(first)]
        below = [path for owner in owners for path in (owner if owner.is_dir() else owner.parent).rglob("*")]
        yield from ((path.name, [path] if path.exists() else []) for path in owners)
        for name in _named_files(subject):
            yield name, [path for path in (*below, SOURCE / name) if path.exists() and _is_named(path, name)]


def _is_named(path, name):
    return path.is_dir() == name.endswith("/") and f"/{path.as_posix()}".endswith(f"/{name.rstrip('/')}")


def test_the_map_names_files_that_exist():
    missing = [name for name, paths in _map() if not paths]
    assert not missing, f"the map names {missing}, which are not there"


def test_the_map_names_every_folder_and_every_file_outside_one():
    named = {path for _, paths in _map() for path in paths}
    modules = [path for path in sorted(SOURCE.rglob("*.py")) if not path.name.startswith("__")]
    unnamed = {path if path.parent == SOURCE else path.parent for path in modules} - named
    assert not unnamed, f"the map lacks {sorted(path.relative_to(SOURCE).as_posix() for path in unnamed)}"


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", PAGE_MAP])
def test_every_file_that_the_document_names_exists(document):
    every = list(_repository())
    names = [name for name in _named_files((ROOT / document).read_text()) if "NAME" not in name]
    missing = [name for name in names if not any(_is_named(path, name) for path in every)]
    assert not missing, f"{document} names {missing}, which are not there"


def test_the_map_of_the_page_names_every_module():
    page = (ROOT / PAGE_MAP).parent
    names = _named_files((ROOT / PAGE_MAP).read_text())
    modules = [path for folder in ("engine", "shell", "components") for path in sorted((page / folder).glob("*.js"))]
    unnamed = [path.name for path in modules if not any(_is_named(path, name) for name in names)]
    assert not unnamed, f"{PAGE_MAP} lacks {unnamed}"


def test_equations_are_cited_by_their_number_in_the_documents():
    """docs/equations.md numbers them. The lines of a lecture that the reader has not heard are no source."""
    phrase = re.compile(r"lecture\W+" + r"lines?\b", flags=re.IGNORECASE)
    texts = {path: path.read_bytes().decode(errors="ignore") for path in _repository() if path.is_file()}
    citing = [path.relative_to(ROOT).as_posix() for path, text in texts.items() if phrase.search(text)]
    assert not citing, f"to be cited as equations: {citing}"
