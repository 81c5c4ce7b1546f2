"""The command line: `online-grads run CONFIG.toml`, `compare CONFIG.toml`, `bench` and `list`."""

import argparse
import importlib.util
import itertools
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from online_grads import bench, bench_report, compare_report, config, report
from online_grads.arguments import unknown
from online_grads.cells import CELLS
from online_grads.compare import compare
from online_grads.estimators.registry import ESTIMATORS
from online_grads.experiment import train
from online_grads.optimizers import OPTIMIZERS
from online_grads.signatures import options
from online_grads.tables import ConfigError
from online_grads.tasks import TASKS


class UsageError(Exception):
    """A mistake on the command line, in one line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments, by default those of the process.

    Returns:
        The exit status: 0, 1 if the data were not finite, 2 for a mistake in arguments or config, 130 if
        interrupted.
    """
    try:
        arguments = _parser().parse_args(argv)
        status = arguments.command(arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, ConfigError) as error:
        print(f"online-grads: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("online-grads: interrupted, nothing written", file=sys.stderr)
        return 130


def entry() -> NoReturn:
    """Run the command line and leave the process."""
    status = main()
    if status == 130:
        # compiled programs may still run in their threads; to tear the interpreter down under them crashes
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="online-grads", description="Online gradient estimators for recurrent networks.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="train every estimator of a config and compare them",
        description="Train every estimator of a config on every seed; print a table, write summary.json, "
        "metrics.npz and the learning curves, and with a curriculum its level, as PNG and PDF.",
        epilog=f"{config.SCHEMA}\n{_names()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.set_defaults(command=_run)
    compared = commands.add_parser(
        "compare",
        help="compare the estimators' gradients with the exact one",
        description="Train networks with one estimator of a config, freeze them at points of the training "
        "and compare every estimator's gradient with the exact one: alignment, bias, variance, signal to "
        "noise, signs, expected loss decrease, credit by lag. Prints tables, writes diagnostics.npz and "
        "figures.",
        epilog=f"{config.SCHEMA}\n{_names()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    compared.set_defaults(command=_compare)
    for parser_, suffix in ((run, ""), (compared, "-compare")):
        parser_.add_argument("config", metavar="CONFIG.toml")
        parser_.add_argument(
            "--set", action="append", default=[], metavar="section.key=value", help="replace a value"
        )
        parser_.add_argument("--fast", action="store_true", help="the config's fast variant: run.fast=true")
        parser_.add_argument(
            "--out", type=Path, metavar="DIR", help=f"a new or empty folder; default: runs/CONFIG{suffix}"
        )
    _add_bench(commands)
    listing = commands.add_parser("list", help="list the estimators")
    listing.set_defaults(command=_list)
    return parser


def _add_bench(commands) -> None:
    parser = commands.add_parser(
        "bench",
        help="measure what estimators cost, beside their bounds",
        description="Measure µs per step, compile seconds and state bytes of estimators on cells of several "
        f"sizes ({bench.INPUTS} inputs, {bench.OUTPUTS} outputs, {bench.DTYPE}). The ratio is to a bound "
        "measured in the same run: the bare product J·M or J·B; each byte of influence and parameters read "
        "and written once (stream); one JVP and one VJP; one forward and backward pass; the forward passes "
        "of all particles.",
    )
    many = {"nargs": "+", "action": "extend", "metavar": "NAME"}
    cells, estimators = _one_of("cell", CELLS), _one_of("estimator", ESTIMATORS)
    parser.add_argument("--cell", type=cells, **many, help="default: vanilla_rnn gru")
    parser.add_argument("--estimators", type=estimators, **many, help="default: all of the registry")
    parser.add_argument(
        "--sizes", type=_count, nargs="+", default=[32, 64, 128, 256, 512], metavar="N",
        help="hidden units; default: 32 64 128 256 512",
    )  # fmt: skip
    parser.add_argument(
        "--window", type=_window, default=1, metavar="K", help="steps per segment and update; default: 1"
    )
    parser.add_argument(
        "--repeats", type=_count, default=5, metavar="R", help="timed runs, of which the median; default: 5"
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


def _count(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


def _window(text: str) -> int:
    window = _count(text)
    if window > bench.MOST_STEPS:
        raise argparse.ArgumentTypeError(f"expected at most {bench.MOST_STEPS} steps, got {text}")
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
        _require("matplotlib")
        place = _folder(arguments.save, arguments.save, option="--save")
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
    except KeyboardInterrupt:
        print(f"online-grads: interrupted after {len(done)} of {total} rows", file=sys.stderr)
        return done, 130
    return done, 0


def _require(*names: str) -> None:
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} missing: pip install online-grads[run]")


def _run(arguments: argparse.Namespace) -> int:
    found = _with_folder(arguments, train, report, "")
    if found.failure is not None:
        print(f"online-grads: stopped early: {found.failure}", file=sys.stderr)
        return 1
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    _with_folder(arguments, compare, compare_report, "-compare")
    return 0


def _with_folder(arguments: argparse.Namespace, work: Callable, said: ModuleType, suffix: str):
    """Read the config, do the work and write it into a folder, which is reserved before the work begins."""
    overrides = [*["run.fast=true"] * arguments.fast, *arguments.set]
    chosen = config.load(arguments.config, overrides)
    _require("matplotlib", "tqdm")
    with _folder(arguments.out, Path("runs") / f"{Path(arguments.config).stem}{suffix}") as folder:
        found = work(chosen, progress=sys.stderr.isatty())
        said.write(found, folder)
    print(said.table(found))
    print(f"\nwritten to {folder}")
    return found


@contextmanager
def _folder(asked: Path | None, default: Path, option: str = "--out") -> Iterator[Path]:
    """The folder asked for, if it is empty; else the first of default, default-2, ... that does not exist.

    One that is made here is removed in the end if nothing was written into it.
    """
    folder = asked or default
    try:
        if asked is None:
            numbered = (default.with_name(f"{default.name}-{count}") for count in itertools.count(2))
            folder, made = next(filter(_make, itertools.chain([default], numbered))), True
        else:
            made = _make(folder)
            if any(folder.iterdir()):
                raise UsageError(
                    f"{option} {folder}: not empty, and nothing is overwritten; name another folder"
                )
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}") from None
    try:
        yield folder
    finally:
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _make(folder: Path) -> bool:
    """Make a folder, which is also what reserves it; False if there is something of that name."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True


def _list(arguments: argparse.Namespace) -> int:
    header = "name family structure noise update bias time memory needs delay reference"
    rows = [tuple(header.split())]
    for name, row in ESTIMATORS.items():
        kinds = ("random" if row.stochastic else "none", "closed form" if row.closed_form else "numerical")
        costs = (row.time, row.memory, row.needs, row.delay)
        rows.append((name, row.family, row.structure, *kinds, row.bias, *costs, row.reference))
    print("\n".join(report.columns(rows, right=False)))
    return 0


def _names() -> str:
    """What a config may name, each with its options."""
    estimators = {name: row.constructor for name, row in ESTIMATORS.items()}
    lines = []
    for kind, known in (("tasks", TASKS), ("cells", CELLS), ("estimators", estimators)):
        named = (f"  {name}: {', '.join(options(make)) or '-'}" for name, make in sorted(known.items()))
        lines += [f"{kind}, each with its options:", *named]
    return "\n".join([*lines, f"optimizers: {', '.join(OPTIMIZERS)}"])
