"""`online-grads run` and `online-grads compare`: the work of a config, written into a folder."""

import argparse
import json
import shlex
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from online_grads import compare_report, config, report, resume
from online_grads.cells import CELLS
from online_grads.checkpoint import CheckpointError
from online_grads.cli import interrupts
from online_grads.cli.places import UsageError, count
from online_grads.cli.work import UnwrittenError, add_arguments, folder_for, read, written
from online_grads.compare import compare
from online_grads.estimators.registry import ESTIMATORS
from online_grads.experiment import train
from online_grads.optimizers import OPTIMIZERS
from online_grads.signatures import options
from online_grads.tasks import TASKS

CHECKPOINTS = "checkpoints"  # the folder for them in that of a run


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
        add_arguments(parser_, suffix)
    run.add_argument(
        "--checkpoint-every", type=count, metavar="N",
        help="save each estimator's training in DIR/checkpoints at the first end of a chunk that reaches "
        "another N steps of the stream, at its end, and on Ctrl-C or SIGTERM",
    )  # fmt: skip
    run.add_argument(
        "--resume", type=Path, metavar="DIR",
        help="go on with a run that was interrupted, from the checkpoints in its folder, and write there",
    )  # fmt: skip


def _run(arguments: argparse.Namespace) -> int:
    if arguments.resume is not None and arguments.out is not None:
        raise UsageError(f"--resume {arguments.resume} writes there; leave --out {arguments.out} out")
    chosen = read(arguments)
    saving = arguments.resume is not None or arguments.checkpoint_every is not None
    with folder_for(arguments, "") if arguments.resume is None else _resumed(arguments.resume) as folder:
        kept: dict[str, Any] = {"every": arguments.checkpoint_every, "resume": arguments.resume is not None}
        if saving:
            kept["checkpoints"] = folder / CHECKPOINTS
        try:
            found = train(chosen, progress=sys.stderr.isatty(), **kept)
            status = written(report.write, found, folder)
        except KeyboardInterrupt as interrupt:
            if not (saving and resume.begun(folder / CHECKPOINTS)):
                raise
            print(f"online-grads: interrupted; go on with: {_again(arguments, folder)}", file=sys.stderr)
            return interrupts.status(interrupt)
        except (CheckpointError, UnwrittenError) as error:
            again = f"; once that is mended, go on with: {_again(arguments, folder)}" if saving else ""
            raise UsageError(f"{error}{again}") from None
    if found.failure is not None:
        print(f"online-grads: stopped early: {found.failure}", file=sys.stderr)
        status = status or 1
    _say(report, found, folder)
    return status


def _resumed(folder: Path) -> AbstractContextManager[Path]:
    """The folder of a run that was interrupted.

    Raises:
        UsageError: it was not interrupted.
    """
    written = folder / "summary.json"
    if written.exists() and _summary(written).get("failure") is None:
        raise UsageError(f"--resume {folder}: this run is finished; its results are in {written}")
    changed = resume.changed(folder / CHECKPOINTS)
    if changed is not None:
        print(f"online-grads: note: {changed}", file=sys.stderr)
    return nullcontext(folder)


def _summary(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        raise UsageError(f"{path}: not what a run has written") from None


def _again(arguments: argparse.Namespace, folder: Path) -> str:
    """The command that goes on."""
    changes = [part for item in arguments.set for part in ("--set", item)]
    fast = ["--fast"] * arguments.fast
    return shlex.join(["online-grads", "run", arguments.config, *fast, *changes, "--resume", str(folder)])


def _compare(arguments: argparse.Namespace) -> int:
    chosen = read(arguments)
    with folder_for(arguments, "-compare") as folder:
        found = compare(chosen, progress=sys.stderr.isatty())
        status = written(compare_report.write, found, folder)
    _say(compare_report, found, folder)
    return status


def _say(said: ModuleType, found: Any, folder: Path) -> None:
    print(said.table(found))
    print(f"\nwritten to {folder}")


def _names() -> str:
    """What a config may name, each with its options."""
    estimators = {name: row.constructor for name, row in ESTIMATORS.items()}
    lines = []
    for kind, known in (("tasks", TASKS), ("cells", CELLS), ("estimators", estimators)):
        named = (f"  {name}: {', '.join(options(make)) or '-'}" for name, make in sorted(known.items()))
        lines += [f"{kind}, each with its options:", *named]
    return "\n".join([*lines, f"optimizers: {', '.join(OPTIMIZERS)}"])
