"""The command line: `bptt train`, `predict`, `inspect`, `explain` and `bench`, made from the dataclasses of `bptt.options`.

Exit codes: 0 done; 1 the loss became infinite or not a number, or bench found wrong gradients; 2 something given cannot be
used; 130 and 143 stopped by Ctrl-C and SIGTERM. torch is imported only when there is work for it: help and mistakes are
answered at once.
"""

from bptt.cli.entry import main

__all__ = ["main"]
