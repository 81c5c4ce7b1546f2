"""The command line: `online-grads run CONFIG.toml` and `online-grads list`."""

import argparse
import importlib.util
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from online_grads import config, report
from online_grads.cells import CELLS
from online_grads.estimators.registry import ESTIMATORS
from online_grads.experiment import train
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
        return arguments.command(arguments)
    except (UsageError, ConfigError) as error:
        print(f"online-grads: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("online-grads: interrupted, nothing written", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="online-grads", description="Online gradient estimators for recurrent networks.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="train every estimator of a config and compare them",
        description="Train every estimator of a config on every seed; print a table, write summary.json, "
        "metrics.npz and curves.png.",
        epilog=f"{config.SCHEMA}\n{_names()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument("config", metavar="CONFIG.toml")
    run.add_argument(
        "--set", action="append", default=[], metavar="section.key=value", help="replace a value"
    )
    run.add_argument("--out", type=Path, metavar="DIR", help="a new or empty folder; default: runs/CONFIG")
    run.set_defaults(command=_run)
    listing = commands.add_parser("list", help="list the estimators")
    listing.set_defaults(command=_list)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    chosen = config.load(arguments.config, arguments.set)
    missing = [name for name in ("matplotlib", "tqdm") if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} missing: pip install online-grads[run]")
    folder = _folder(arguments.out, Path("runs") / Path(arguments.config).stem)
    try:
        found = train(chosen, progress=sys.stderr.isatty())
    except BaseException:
        if arguments.out is None:
            folder.rmdir()
        raise
    report.write(found, folder)
    print(report.table(found))
    print(f"\nwritten to {folder}")
    if found.failure is not None:
        print(f"online-grads: stopped early: {found.failure}", file=sys.stderr)
        return 1
    return 0


def _folder(asked: Path | None, default: Path) -> Path:
    """The folder asked for, if it is empty; else the first of default, default-2, ... that does not exist."""
    folder = asked or default
    try:
        if asked is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise UsageError(
                    f"--out {folder}: not empty, and nothing is overwritten; name another folder"
                )
            return folder
        default.parent.mkdir(parents=True, exist_ok=True)
        for count in itertools.count(2):
            try:  # making it is also what reserves it
                folder.mkdir()
                break
            except FileExistsError:
                folder = default.with_name(f"{default.name}-{count}")
        return folder
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}") from None


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
    return "\n".join([*lines, f"optimizers: {', '.join(config.OPTIMIZERS)}"])
