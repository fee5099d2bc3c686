"""The lecture on backpropagation through time as one self-contained page, on which every number can be changed.

`write(path)` writes it; `bptt.explain(model, x, y)` (own.py) puts the user's own network on it. `page/README.md` says how
the page is built and how to add a scene.

The package is not called `explain`: importing it would put the module in the place of the function `bptt.explain`.
"""

from pathlib import Path
from typing import Any

from bptt.explaining.bundle import PAGE, bundle
from bptt.files import write_atomically

__all__ = ["PAGE", "show", "write"]


def write(path: Path | str, own: dict[str, Any] | None = None) -> Path:
    """Write the page to `path`, one HTML file that needs neither a network nor a server, and return the path.

    own: what `own.py` found of the user's network; None: the lecture alone.

    Raises:
        OSError: the file cannot be written.
        InputError: a device or a pipe is in its place.
    """
    path = Path(path)
    write_atomically(path, bundle(own=own).encode("utf-8"))
    return path


def show(path: Path) -> bool:
    """Open a page in the browser; False, and a word on standard output, where there is none."""
    import webbrowser

    found = webbrowser.open(path.absolute().as_uri())
    if not found:
        print("found no browser: open the file by hand")
    return found
