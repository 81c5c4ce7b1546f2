"""`online-grads sweep`: every estimator of a config at every point of a grid."""

import argparse
import shlex
import sys

from online_grads import sweep_report
from online_grads.cli import interrupts
from online_grads.cli.places import count, require
from online_grads.cli.work import add_arguments, folder_for, read, written
from online_grads.grid import axes_of
from online_grads.grid_points import grid
from online_grads.sweeping import train_grid

EPILOG = """\
what --over takes, once or several times; the grid is the product of all:
  optimizer.learning_rate=1e-5..1e-2:7:log   7 numbers from 1e-5 to 1e-2, evenly on a log axis
  task.delay=4..12:3:lin                     3 numbers, evenly; integers where all of them are
  estimator.rank=1,2,4                       values as in TOML; words without quotes are strings
  model.hidden=[8],[16,16]                   ... lists too

A key of [estimator] goes to the estimators that have such an option, the others are trained once without
it; estimator.1.key goes to the second one of the file. A key of [optimizer] goes to those whose optimizer
takes it. Every other key goes to all. A value that is swept replaces what an estimator has of its own.

All learning rates, and all numbers that an optimizer or an estimator takes as an array, train in one
program; every other value has a program of its own. A point that is refused is in the table, with the
reason below it, and the others go on. Ctrl-C keeps the programs that are done.

best_<label>.toml is a config with the estimator at its best point: online-grads run best_<label>.toml
"""


def add(commands) -> None:
    """Add the command to a parser's."""
    parser = commands.add_parser(
        "sweep",
        help="train every estimator of a config over a grid of values",
        description="Train every estimator of a config at every point of a grid. Prints a table; writes "
        "sweep.json, the final loss against each value swept as PNG and PDF, and for each estimator its "
        "best setting as a config.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser, "-sweep")
    parser.add_argument(
        "--over",
        action="append",
        required=True,
        metavar="section.key=values",
        help="see below",
    )
    parser.add_argument(
        "--seeds", type=count, metavar="N",
        help="seeds of each point, as --set run.seeds=N; an estimator's own number stays",
    )  # fmt: skip
    parser.set_defaults(command=_sweep)


def _sweep(arguments: argparse.Namespace) -> int:
    chosen = read(arguments, [] if arguments.seeds is None else [f"run.seeds={arguments.seeds}"])
    made = grid(chosen, axes_of(arguments.over))
    require("tomli_w")
    with folder_for(arguments, "-sweep") as folder:
        found = train_grid(made, progress=sys.stderr.isatty())
        status = written(sweep_report.write, found, folder, _command(arguments))
    if found.failure is not None:
        print(f"online-grads: {found.failure}", file=sys.stderr)
        status = status or 1
    if found.interrupt is not None:
        print(f"online-grads: interrupted after {len(found.rows)} of {found.points} points", file=sys.stderr)
        status = interrupts.answer(found.interrupt)
    print(sweep_report.table(found))
    print(f"\nwritten to {folder}")
    return status


def _command(arguments: argparse.Namespace) -> str:
    """The command line, as it can be typed again."""
    words = ["online-grads", "sweep", arguments.config, *["--fast"] * arguments.fast]
    words += [part for text in arguments.over for part in ("--over", text)]
    words += [part for text in arguments.set for part in ("--set", text)]
    words += [] if arguments.seeds is None else ["--seeds", str(arguments.seeds)]
    return shlex.join(words)
