"""The lecture on backpropagation through time as one self-contained page, on which every number can be changed.

`write(path)` writes it. `page/README.md` says how the page is built and how to add a scene.
"""

from pathlib import Path

from bptt.explain.bundle import PAGE, bundle

__all__ = ["PAGE", "write"]


def write(path: Path | str) -> Path:
    """Write the page to `path`, one HTML file that needs neither a network nor a server, and return the path.

    Raises:
        OSError: the file cannot be written.
    """
    path = Path(path)
    path.write_text(bundle(), encoding="utf-8")
    return path
