"""`python -m bptt` is `bptt`; so `torchrun -m bptt` works."""

import sys

from bptt.cli import main

if __name__ == "__main__":
    sys.exit(main())
