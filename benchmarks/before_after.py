"""A change of bptt against the source before it: the same step from both, each in its own process, taking turns.

    git worktree add OTHER REVISION    # and build its core there
    .venv/bin/python benchmarks/before_after.py OTHER/src [--cells RNN GRU LSTM] [--seconds 0.4] [--rounds 8]

The points of speed.py's grid (a training step, T 256), and calls of a single step, B 1, H 64, without gradient. A ratio
is the time after over the time before: below 1 the change is faster. The gradients are compared first.
"""

import argparse
import multiprocessing
import sys
from pathlib import Path
from statistics import geometric_mean

from peers import serve
from speed import BATCHES, HIDDEN, STEPS, Peer, describe, differ

HERE = Path(__file__).parents[1] / "src"


def serve_from(pipe, source):
    """peers.serve with the bptt of that source folder."""
    sys.path.insert(0, str(source))
    import bptt

    assert Path(bptt.__file__).is_relative_to(source), f"{bptt.__file__} is not in {source}"
    serve(pipe, "bptt")


class Version(Peer):
    """One version of bptt in a process of its own."""

    def __init__(self, name, source):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve_from, args=(theirs, Path(source).resolve()), daemon=True)
        self.process.start()
        theirs.close()


def ratio(versions, case, options):
    """Time after / time before of one case: of the fastest calls, which other work on the machine disturbs least."""
    found = [version.ask("case", case) for version in versions]
    error = differ(found[1], found[0], 0)
    rounds = []
    for i in range(options.rounds):
        order = versions if i % 2 else versions[::-1]  # whoever comes second finds a warmer machine
        taken = {v.name: min(v.ask("time", options.seconds / options.rounds)) for v in order}
        rounds.append((taken["before"], taken["after"]))
    before, after = (1e3 * min(column) for column in zip(*rounds, strict=True))
    result = after / before
    print(
        f"{describe(case)}  before {before:8.3f}  after {after:8.3f} ms  {result:5.3f}"
        f"  gradients differ by {error or 0:.0e}",
        flush=True,
    )
    return result


def main(options):
    versions = [Version("before", options.before), Version("after", HERE)]
    every = []
    for cell in options.cells:
        ratios = []
        for batch in options.batches:
            for hidden in options.hidden:
                case = {"cell": cell, "batch": batch, "hidden": hidden, "steps": STEPS, "threads": options.threads}
                ratios.append(ratio(versions, case, options))
        print(
            f"{cell}: geometric mean {geometric_mean(ratios):.3f}, from {min(ratios):.3f} to {max(ratios):.3f}",
            flush=True,
        )
        every += ratios
        ratio(versions, {"cell": cell, "batch": 1, "hidden": 64, "steps": 1, "inference": True, "threads": 1}, options)
    print(f"all: geometric mean {geometric_mean(every):.3f}")
    for version in versions:
        version.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", help="the src folder of the version before")
    parser.add_argument("--cells", nargs="+", choices=["RNN", "GRU", "LSTM"], default=["RNN", "GRU", "LSTM"])
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--hidden", nargs="+", type=int, default=HIDDEN)
    parser.add_argument("--seconds", type=float, default=0.4, help="for each version at each point")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    main(parser.parse_args())
