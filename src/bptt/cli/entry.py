"""The entrance of the command line: which command runs, and what becomes of its failures."""

import io
import os
import sys
from collections.abc import Callable, Sequence

import bptt
from bptt.cli.failures import fail, out_of_memory, warnings_in_words
from bptt.cli.parsing import fields_of, parse, with_plain_help
from bptt.cli.trained import explain, inspect, predict
from bptt.cli.training import train
from bptt.errors import InputError
from bptt.options import BenchOptions

HELP = f"""\
usage: bptt [-h] [--version] {{train,predict,inspect,explain,bench}} ...

Train recurrent networks by backpropagation through time, and use them.

  bptt train                                           learn to write, from the source text of Python's own
                                                       library; 90 seconds
  bptt train text   --data BOOK.txt                    … from a text of yours, a file or a folder
  bptt train series --data FILE.csv --target COLUMN    forecast a table over time
  bptt train labels --data FILE.csv --id COLUMN --label COLUMN
                                                       label whole sequences
  bptt train {{adding,copy}} --length 100                two problems that need a long memory
  bptt train --resume RUN                              go on where a run stopped
  bptt predict RUN                                     use a run: continue a text, forecast, label
  bptt inspect RUN                                     how the gradient flows back through a run, and a report
  bptt explain                                         the lecture on backpropagation through time as a page
  bptt explain RUN                                     … with a run's own network on it
  bptt bench                                           torch.nn against bptt on this machine; a minute

  torchrun --nproc-per-node N -m bptt train …          train in N processes

options:
  -h, --help     show this help; also `bptt train --help`, `bptt train TASK --help`, `bptt predict --help`,
                 `bptt inspect --help`, `bptt explain --help`, `bptt bench --help`
  --version      show the version ({bptt.__version__})
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `bptt` with these arguments (default: the process's own). Returns the exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show "…" is no reason to fail
    try:
        with warnings_in_words():
            return _command(arguments)
    except InputError as error:
        return fail(str(error))
    except MemoryError as error:
        return fail(out_of_memory(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return fail(f"{where}{error.strerror or error}; check the disk and the permissions, then try again")
    except KeyboardInterrupt:
        print("\nbptt: stopped at once; a run keeps its last checkpoint", file=sys.stderr)
        return 130


def _command(arguments: list[str]) -> int:
    """Run the command that the arguments begin with. Returns the exit code."""
    # OpenMP's threads wait for each other by spinning, and come almost to a halt when another process wants a core: on 2
    # cores the demo then went 5 times slower. Spinning briefly loses nothing when alone. To be set before torch is loaded.
    if arguments[:1] != ["bench"]:  # which measures torch as it is in the user's own programs
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    commands: dict[str, Callable[[list[str]], int]] = {
        "train": train,
        "predict": predict,
        "inspect": inspect,
        "explain": explain,
        "bench": bench,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"bptt {bptt.__version__}")
        return 0
    if arguments[0] not in commands:
        raise InputError(
            f"unknown command {arguments[0]!r}: give train, predict, inspect, explain or bench; "
            "`bptt --help` shows examples"
        )
    return commands[arguments[0]](arguments[1:])


def bench(arguments: list[str]) -> int:
    """Run `bptt bench` with these arguments. Returns the exit code."""
    parsed = parse(with_plain_help(BenchOptions), "bptt bench", arguments)
    from bptt.bench import run

    return run(BenchOptions(**fields_of(parsed, BenchOptions)))
