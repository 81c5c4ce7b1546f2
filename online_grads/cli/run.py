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
from online_grads.cli.places import UsageError, count, require, reserved
from online_grads.cli.work import UnwrittenError, add_arguments, folder_for, overrides, read, written
from online_grads.compare import compare
from online_grads.estimators.registry import ESTIMATORS
from online_grads.experiment import train
from online_grads.optimizers import OPTIMIZERS
from online_grads.resume import CHECKPOINTS
from online_grads.signatures import options
from online_grads.tasks import TASKS

SUMMARY = "summary.json"


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
    add_arguments(run, "", needed=False)
    add_arguments(compared, "-compare")
    run.add_argument(
        "--checkpoint-every", type=count, metavar="N",
        help="save each estimator's training in DIR/checkpoints at the first end of a chunk that reaches "
        "another N steps of the stream, at its end, and on Ctrl-C or SIGTERM",
    )  # fmt: skip
    run.add_argument(
        "--resume", type=Path, metavar="DIR",
        help="go on with a run that was interrupted, from the checkpoints in its folder, and write there; "
        "CONFIG.toml may be left out. With --checkpoint-every it begins if there is nothing yet, so that one "
        "command starts and restarts it",
    )  # fmt: skip


def _run(arguments: argparse.Namespace) -> int:
    if arguments.resume is not None and arguments.out is not None:
        raise UsageError(f"--resume {arguments.resume} writes there; leave --out {arguments.out} out")
    chosen = _config(arguments)
    if arguments.resume is not None and _finished(arguments.resume, chosen):
        print(f"{arguments.resume}: this run is finished; its results are in {arguments.resume / SUMMARY}")
        return 0
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
            nothing = "" if resume.holds(folder / CHECKPOINTS) else " before anything was saved"
            print(f"online-grads: interrupted{nothing}; {_again(folder)}", file=sys.stderr)
            return interrupts.answer(interrupt)
        except (CheckpointError, UnwrittenError) as error:
            again = f"; once that is mended, {_again(folder)}" if saving else ""
            raise UsageError(f"{error}{again}") from None
    if found.failure is not None:
        print(f"online-grads: stopped early: {found.failure}", file=sys.stderr)
        status = status or 1
    _say(report, found, folder)
    return status


def _config(arguments: argparse.Namespace) -> config.Config:
    """The config of the arguments; to go on without one, that of the run.

    Raises:
        UsageError: neither is there.
    """
    folder, needed = arguments.resume, ["CONFIG.toml"] * (arguments.config is None)
    if folder is not None and not resume.begun(folder / CHECKPOINTS):
        missing = needed + ["--checkpoint-every N"] * (arguments.checkpoint_every is None)
        if missing:
            begins = f"with {' and '.join(missing)} a run begins there"
            raise UsageError(f"--resume {folder}: no checkpoints to go on with; {begins}")
    if not needed:
        return read(arguments)
    if folder is None:
        raise UsageError("the following arguments are required: CONFIG.toml")
    require("matplotlib", "tqdm")
    return resume.config_of(folder / CHECKPOINTS, overrides(arguments))


def _finished(folder: Path, chosen: config.Config) -> bool:
    """Whether a run of this config has written its results.

    Raises:
        ResumeError: it was of another config.
    """
    written = folder / SUMMARY
    if not written.exists() or _summary(written).get("failure") is not None:
        return False
    resume.opened(chosen, folder / CHECKPOINTS, None, resume=True)
    return True


def _resumed(folder: Path) -> AbstractContextManager[Path]:
    """The folder of a run that was interrupted, or of one that begins."""
    checkpoints = folder / CHECKPOINTS
    if not resume.begun(checkpoints):
        killed_at_once = checkpoints.is_dir() and list(folder.iterdir()) == [checkpoints]
        return nullcontext(folder) if killed_at_once else reserved(folder, folder, "--resume")
    changed = resume.changed(checkpoints)
    if changed is not None:
        print(f"online-grads: note: {changed}", file=sys.stderr)
    return nullcontext(folder)


def _summary(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):
        raise UsageError(f"{path}: not what a run has written") from None


def _again(folder: Path) -> str:
    """The command that goes on."""
    return f"go on with: {shlex.join(['online-grads', 'run', '--resume', str(folder)])}"


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
