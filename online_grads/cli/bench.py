"""`online-grads bench`: what estimators cost, beside their bounds."""

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from online_grads import bench, bench_report
from online_grads.arguments import unknown
from online_grads.bench_model import DTYPE, INPUTS, OUTPUTS
from online_grads.bench_timing import MOST_STEPS
from online_grads.cells import CELLS
from online_grads.cli import interrupts
from online_grads.cli.places import UsageError, count, require, reserved
from online_grads.estimators.registry import ESTIMATORS


def add(commands) -> None:
    """Add the command to a parser's."""
    parser = commands.add_parser(
        "bench",
        help="measure what estimators cost, beside their bounds",
        description="Measure µs per step, compile seconds and state bytes of estimators on cells of several "
        f"sizes ({INPUTS} inputs, {OUTPUTS} outputs, {DTYPE}). The ratio is to a bound "
        "measured in the same run: the bare product J·M or J·B; each byte of influence and parameters read "
        "and written once (stream); one JVP and one VJP; one forward and backward pass; the forward passes "
        "of all particles.",
    )
    many = {"nargs": "+", "action": "extend", "metavar": "NAME"}
    cells, estimators = _one_of("cell", CELLS), _one_of("estimator", ESTIMATORS)
    parser.add_argument("--cell", type=cells, **many, help="default: vanilla_rnn gru")
    parser.add_argument("--estimators", type=estimators, **many, help="default: all of the registry")
    parser.add_argument(
        "--sizes", type=count, nargs="+", default=[32, 64, 128, 256, 512], metavar="N",
        help="hidden units; default: 32 64 128 256 512",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=_window, default=1, metavar="K", help="steps per segment and update; default: 1"
    )
    parser.add_argument(
        "--repeats", type=count, default=5, metavar="R", help="timed runs, of which the median; default: 5"
    )
    parser.add_argument(
        "--limit", type=_gibibytes, metavar="GIB",
        help="leave out larger states; default: a quarter of the device's memory, or the host's",
    )  # fmt: skip
    parser.add_argument(
        "--save", type=Path, metavar="DIR", help="a new or empty folder for JSON and a figure"
    )
    parser.add_argument(
        "--memory", type=_gibibytes, metavar="GIB",
        help="measure nothing; print the largest n for which state and parameters fit, for each estimator",
    )  # fmt: skip
    parser.set_defaults(command=_bench)


def _one_of(what: str, known: Iterable[str]) -> Callable[[str], str]:
    """The type of an argument that names something."""

    def name(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(unknown(f"{what} {text!r}", text, known))
        return text

    return name


def _window(text: str) -> int:
    window = count(text)
    if window > MOST_STEPS:
        raise argparse.ArgumentTypeError(f"expected at most {MOST_STEPS} steps, got {text}")
    return window


def _gibibytes(text: str) -> float:
    """Bytes, from GiB."""
    try:
        size = float(text)
    except ValueError:
        size = math.nan
    if not 0 < size < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of GiB above 0, got {text!r}")
    return size * 2**30


def _bench(arguments: argparse.Namespace) -> int:
    cells = list(dict.fromkeys(arguments.cell or ["vanilla_rnn", "gru"]))
    estimators = list(dict.fromkeys(arguments.estimators or ESTIMATORS))
    if arguments.memory is not None:
        if arguments.save is not None:
            raise UsageError("--memory measures nothing that --save could write; leave one of them out")
        print(bench_report.fitting(cells, estimators, arguments.memory))
        return 0
    place: AbstractContextManager[Path | None] = nullcontext()
    if arguments.save is not None:
        require("matplotlib")
        place = reserved(arguments.save, arguments.save, option="--save")
    options = {"window": arguments.window, "repeats": arguments.repeats}
    limit = arguments.limit or bench.memory_limit()
    with place as folder:
        found = bench.costs(cells, sorted(set(arguments.sizes)), estimators, **options, limit=limit)
        rows, status = _measured(found, len(cells) * len(set(arguments.sizes)) * len(estimators))
        said = f"{bench_report.header(**options)}\n\n{bench_report.table(rows)}"
        if folder is not None:
            # before the table: its reader may close the pipe
            try:
                bench_report.write(rows, folder, **options)
                said += f"\n\nwritten to {folder}"
            except OSError as error:
                print(f"online-grads: --save {folder}: {error.strerror}; nothing saved", file=sys.stderr)
                status = status or 2
    print(said)
    return status


def _measured(rows: Iterable[bench.Cost], total: int) -> tuple[list[bench.Cost], int]:
    """The rows, and an exit status: what was measured before an interruption is not lost."""
    if sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None:
        from tqdm import tqdm

        rows = tqdm(rows, total=total, unit="row", leave=False)
    done: list[bench.Cost] = []
    try:
        for row in rows:
            done.append(row)
    except KeyboardInterrupt as interrupt:
        print(f"online-grads: interrupted after {len(done)} of {total} rows", file=sys.stderr)
        return done, interrupts.answer(interrupt)
    return done, 0
