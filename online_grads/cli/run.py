"""`online-grads run` and `online-grads compare`: the work of a config, written into a folder."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from online_grads import compare_report, config, report
from online_grads.cells import CELLS
from online_grads.cli.places import require, reserved
from online_grads.compare import compare
from online_grads.estimators.registry import ESTIMATORS
from online_grads.experiment import train
from online_grads.optimizers import OPTIMIZERS
from online_grads.signatures import options
from online_grads.tasks import TASKS


def add(commands) -> None:
    """Add the two commands to a parser's."""
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
    require("matplotlib", "tqdm")
    with reserved(arguments.out, Path("runs") / f"{Path(arguments.config).stem}{suffix}") as folder:
        found = work(chosen, progress=sys.stderr.isatty())
        said.write(found, folder)
    print(said.table(found))
    print(f"\nwritten to {folder}")
    return found


def _names() -> str:
    """What a config may name, each with its options."""
    estimators = {name: row.constructor for name, row in ESTIMATORS.items()}
    lines = []
    for kind, known in (("tasks", TASKS), ("cells", CELLS), ("estimators", estimators)):
        named = (f"  {name}: {', '.join(options(make)) or '-'}" for name, make in sorted(known.items()))
        lines += [f"{kind}, each with its options:", *named]
    return "\n".join([*lines, f"optimizers: {', '.join(OPTIMIZERS)}"])
