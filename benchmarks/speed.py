"""One training step of a recurrent layer: bptt against torch.nn and JAX, each in its own process, taking turns.

    .venv/bin/python benchmarks/speed.py [SECTION ...] [--cells RNN GRU LSTM] [--seconds 0.3] [--rounds 5]

Sections: grid (the default), packed, float64, bidirectional, autocast, memory, first, threads.
The grid is B {1, 16, 64} x H {32 .. 512}, D = H, T 256, float32, 2 threads, gradients to the weights and biases; the ratio
is to the faster peer; the share is that of the matrix-product limit, 2·B·T·G·H·(2D+3H) operations at the rate of a large
product, measured at every point. Medians of interleaved runs. No speed-up is printed where gradients differ from torch's.
"""

import argparse
import math
import multiprocessing
from statistics import geometric_mean, median

import numpy as np
from peers import operations, serve

STEPS = 256
BATCHES, HIDDEN = (1, 16, 64), (32, 64, 128, 256, 512)


class Peer:
    """A framework in a process of its own."""

    def __init__(self, framework):
        context = multiprocessing.get_context("spawn")
        self.name = framework
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, framework), daemon=True)
        self.process.start()
        theirs.close()

    def ask(self, *request):
        """Its answer to a request (peers.serve)."""
        self.pipe.send(request)
        return self.pipe.recv()

    def stop(self):
        """End the process."""
        self.pipe.close()
        self.process.join()


def differ(ours, theirs, tolerance):
    """The largest relative difference of a gradient, where it is above the tolerance; else None."""
    errors = [np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30) for a, b in zip(ours, theirs, strict=True)]
    return max(errors) if not max(errors) <= tolerance else None


def compare(peers, case, seconds, rounds, tolerance=1e-4):
    """Median seconds of each framework on that case, and the rate of a large product meanwhile; None where they differ."""
    gradients = {p.name: p.ask("case", case) for p in peers}
    for name, found in gradients.items():
        error = differ(found, gradients["torch"], tolerance)
        if error is not None:
            print(f"{describe(case)}: the gradients of {name} differ from torch's by {error:.1e}: no times")
            return None
    times, rates = {p.name: [] for p in peers}, []
    for _ in range(rounds):
        for peer in peers:
            times[peer.name] += peer.ask("time", seconds / rounds)
        rates.append(next(p for p in peers if p.name == "torch").ask("rate"))
    return {name: median(t) for name, t in times.items()}, max(rates)


def describe(case):
    return f"{case['cell']:5} B {case['batch']:3} H {case['hidden']:4}"


def grid(options):
    peers = [Peer(name) for name in ("torch", "jax", "bptt")]
    for cell in options.cells:
        ratios, shares, peers_over_limit = [], [], []
        for batch in options.batches:
            for hidden in options.hidden:
                case = {"cell": cell, "batch": batch, "hidden": hidden, "steps": STEPS}
                found = compare(peers, case, options.seconds, options.rounds)
                if found is None:
                    continue
                times, rate = found
                best = min("torch", "jax", key=times.__getitem__)
                limit = operations(case) / rate
                ratio, share = times[best] / times["bptt"], limit / times["bptt"]
                ratios.append(ratio)
                peers_over_limit.append(times[best] / limit)
                if batch >= 16 and hidden >= 128:
                    shares.append(share)
                columns = "  ".join(f"{name} {1e3 * t:8.2f}" for name, t in times.items())
                print(
                    f"{describe(case)}  {columns} ms  {ratio:5.2f}x {best:5}  {share:4.0%} of {rate / 1e9:3.0f} GFLOP/s",
                    flush=True,
                )
        if ratios:
            at_large = f", share of the limit at B >= 16, H >= 128: {geometric_mean(shares):.0%}" if shares else ""
            print(
                f"{cell}: geometric mean {geometric_mean(ratios):.2f}x, least {min(ratios):.2f}x{at_large}; the faster peer "
                f"takes {geometric_mean(peers_over_limit):.1f} times the limit in the geometric mean",
                flush=True,
            )
    for peer in peers:
        peer.stop()


def against_torch(options, cases, tolerance=1e-4):
    """The ratio to torch of each case, and the geometric mean of all."""
    peers, ratios = [Peer("torch"), Peer("bptt")], []
    for label, case in cases:
        found = compare(peers, case, options.seconds, options.rounds, tolerance)
        if found is None:
            continue
        times, _ = found
        ratios.append(times["torch"] / times["bptt"])
        print(
            f"{label:32} {describe(case)}  torch {1e3 * times['torch']:8.2f}  bptt {1e3 * times['bptt']:8.2f} ms"
            f"  {ratios[-1]:5.2f}x",
            flush=True,
        )
    print(f"geometric mean {geometric_mean(ratios):.2f}x, least {min(ratios):.2f}x")
    for peer in peers:
        peer.stop()


def packed(options):
    """Lengths spread evenly, mean 0.55 T; and against our own padded time."""
    for cell in options.cells:
        case = {"cell": cell, "batch": 32, "hidden": 128, "steps": 500}
        lengths = [math.ceil(500 * (0.1 + 0.9 * (i + 0.5) / 32)) for i in reversed(range(32))]
        lengths[0] = 500
        against_torch(options, [("packed", case | {"lengths": lengths})])
        peer, share = Peer("bptt"), sum(lengths) / (32 * 500)
        times = {"packed": [], "padded": []}
        for _ in range(options.rounds):
            for name, taken in times.items():
                peer.ask("case", case | ({"lengths": lengths} if name == "packed" else {}))
                taken += peer.ask("time", options.seconds / options.rounds)
        excess = median(times["packed"]) / (median(times["padded"]) * share)
        print(f"own packed time / (own padded time x share of real steps {share:.2f}): {excess:.2f}", flush=True)
        peer.stop()


def float64(options):
    case = {"batch": 32, "hidden": 128, "steps": 500, "dtype": "float64"}
    against_torch(options, [("float64", case | {"cell": cell}) for cell in options.cells], tolerance=1e-10)


def bidirectional(options):
    case = {"batch": 32, "hidden": 128, "steps": STEPS, "layers": 2, "bidirectional": True}
    against_torch(options, [("bidirectional, 2 layers", case | {"cell": cell}) for cell in options.cells])


def autocast(options):
    for cell in options.cells:
        cases = [
            ("autocast", {"cell": cell, "batch": b, "hidden": h, "steps": STEPS, "autocast": True})
            for b in (16, 64)
            for h in (256, 512)
        ]
        against_torch(options, cases, tolerance=5e-2)


def memory(options):
    """Peak resident bytes of a step above those of the process with the layer and its inputs, each in a fresh process."""
    for cell in options.cells:
        for batch, hidden in ((1, 128), (16, 256), (64, 512)):
            case = {"cell": cell, "batch": batch, "hidden": hidden, "steps": STEPS}
            peaks = {}
            for name in ("torch", "bptt"):
                peer = Peer(name)
                peer.ask("case", case | {"batch": 1, "steps": 2, "hidden": 8})  # libraries are loaded, threads started
                before = peer.ask("memory")
                peer.ask("case", case)
                peaks[name] = (peer.ask("memory") - before) / 1e6
                peer.stop()
            ratio = peaks["bptt"] / peaks["torch"]
            print(
                f"{describe(case)}  torch {peaks['torch']:7.1f} MB  bptt {peaks['bptt']:7.1f} MB  {ratio:.2f}",
                flush=True,
            )


def first(options):
    """The first call of a process in which torch has run, but no recurrent layer, and the later ones."""
    for cell in options.cells:
        for name in ("torch", "bptt"):
            peer = Peer(name)
            taken = peer.ask("first", {"cell": cell, "batch": 16, "hidden": 64, "steps": STEPS})
            print(
                f"{cell:5} {name:6} first call {1e3 * taken[0]:6.1f} ms, later ones {1e3 * median(taken[1:]):6.1f} ms",
                flush=True,
            )
            peer.stop()


def threads(options):
    """Twice as many threads as cores, against as many: the time of a step may not collapse."""
    for cell in options.cells:
        for batch, hidden in ((1, 256), (16, 128), (64, 256)):
            case, found = {"cell": cell, "batch": batch, "hidden": hidden, "steps": STEPS}, {}
            for count in (2, 4):
                peers = [Peer("torch"), Peer("bptt")]
                found[count] = compare(peers, case | {"threads": count}, options.seconds, options.rounds)[0]
                for peer in peers:
                    peer.stop()
            ratios = "  ".join(f"{name} {found[4][name] / found[2][name]:.2f}" for name in found[2])
            print(f"{describe(case)}  4 threads / 2 threads on 2 cores: {ratios}", flush=True)


SECTIONS = {f.__name__: f for f in (grid, packed, float64, bidirectional, autocast, memory, first, threads)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", default=["grid"], help=", ".join(SECTIONS))
    parser.add_argument("--cells", nargs="+", choices=["RNN", "GRU", "LSTM"], default=["RNN", "GRU", "LSTM"])
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--hidden", nargs="+", type=int, default=HIDDEN)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each framework at each point")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    for section in chosen.sections:
        SECTIONS[section](chosen)
