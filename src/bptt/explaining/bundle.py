"""Modules, styles and template of `page/` → one HTML file.

A browser loads no ES modules from file://, so each module becomes a function scope of one script, in the order of their
imports. The modules themselves stay plain ES modules, which Node runs as they are. Two forms are understood, and anything
else is refused: `import { a, b as c } from "./x.js";` and `export` before a function, const or class. JSDoc comments, which
hold the types, stay out of the page.
"""

import json
import posixpath
import re
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

import jinja2

PAGE = Path(__file__).parent / "page"

_IMPORT = re.compile(r'^import \{([^}]*)\} from "(\.[^"]*)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:function\*?|const|class) (\w+))", re.MULTILINE)
_DOC = re.compile(r"^[ \t]*/\*\*(?:(?!\*/).)*\*/\n", re.MULTILINE | re.DOTALL)
_OTHER = re.compile(r"^(?:import|export)\b.*", re.MULTILINE)


def bundle(page: Path = PAGE, own: dict[str, Any] | None = None) -> str:
    """Return the HTML of the page, whose scenes are all modules in `scenes/`.

    own: data for the scene of the user's own network.
    """
    sources = {path.relative_to(page).as_posix(): path.read_text(encoding="utf-8") for path in page.rglob("*.js")}
    styles = sorted(page.rglob("*.css"), key=lambda path: (path.parent != page, path))  # the page's own first
    environment = jinja2.Environment(autoescape=False, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    template = environment.from_string((page / "template.html.j2").read_text(encoding="utf-8"))
    scenes = sorted(name for name in sources if name.startswith("scenes/"))
    return template.render(
        style="\n".join(path.read_text(encoding="utf-8") for path in styles),
        own=None if own is None else json.dumps(own, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),
        script=join(sources).replace("</script", "<\\/script"),
        scenes=", ".join(f'modules["{name}"].scene' for name in scenes),
    )


def join(sources: dict[str, str]) -> str:
    """Return one script that leaves each module's exports in `modules[name]`.

    Raises:
        CycleError: imports form a circle.
        ValueError: a module imports one that is not there, or has a form that the bundle does not understand.
    """
    needs = {name: [_resolved(name, path) for _, path in _IMPORT.findall(text)] for name, text in sources.items()}
    for name, wanted in needs.items():
        for other in wanted:
            if other not in sources:
                raise ValueError(f"{name} imports {other}, which is not there")
    order = TopologicalSorter(needs).static_order()
    return "\n".join(["const modules = {};", *(_scoped(name, sources[name]) for name in order)])


def _resolved(importer: str, path: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(importer), path))


def _scoped(name: str, text: str) -> str:
    def taken(found: re.Match[str]) -> str:
        names = " ".join(found[1].split()).replace(" as ", ": ")
        return f'const {{ {names} }} = modules["{_resolved(name, found[2])}"];\n'

    exports = ", ".join(_EXPORT.findall(text))
    body = _EXPORT.sub("", _IMPORT.sub(taken, _DOC.sub("", text)))
    if other := _OTHER.search(body):
        raise ValueError(f"{name}: the bundle does not understand {other[0]!r}; see bundle.py for the two forms")
    return f'modules["{name}"] = (() => {{\n{body}return {{ {exports} }};\n}})();'
