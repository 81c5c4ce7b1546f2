"""Going on with an experiment where it was interrupted: what is kept of it, and where.

A folder of checkpoints holds

    run.json          the tables of the config, the interval, and what computed it
    0_rtrl/step_…     of the config's first estimator: the state of all its learning rates and seeds, and
    1_uoro/step_…     all that was recorded so far; the two newest checkpoints of each estimator

and one of an estimator that is trained to the end stays there: resuming does not train it again, and
`online_grads.learned` reads its parameters.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from online_grads import checkpoint
from online_grads.arguments import positive_int
from online_grads.checkpoint import CheckpointError
from online_grads.config import Config, EstimatorConfig, parse
from online_grads.files import file_name, locked, make_folder, write_whole
from online_grads.leaves import copied
from online_grads.types import Metrics, PyTree
from online_grads.versions import versions

CHECKPOINTS = "checkpoints"  # the folder for them in that of a run of the command
RUN = "run.json"
KINDS = {"config": dict, "every": int, "computed with": dict}  # of what it holds
SHOWN = 3  # keys of another config that are named


class ResumeError(ValueError):
    """There is nothing to go on with, or it is of another experiment; in one line."""


class Saved(NamedTuple):
    """What is kept of one estimator's training."""

    state: PyTree  # learners and streams, every leaf [rates, seeds, ...]
    recorded: Any  # Metrics so far: NumPy arrays [updates, rates, seeds], info [1 + chunks, rates, seeds]

    def then(self, state: PyTree, metrics: Metrics | None) -> "Saved":
        """With what the next chunks gave."""
        if metrics is None:
            return Saved(state, self.recorded)
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), self.recorded, metrics)
        return Saved(state, joined)


class Saving(NamedTuple):
    """Where the checkpoints of an experiment go, and how often."""

    folder: Path
    every: int  # steps of the stream

    @contextlib.contextmanager
    def begun(self, config: Config) -> Iterator[None]:
        """Write down what the checkpoints are of, and let nobody else train there while the body does.

        Raises:
            ResumeError: somebody else does, or the folder cannot be written to.
        """
        held = {"config": config.tables, "every": self.every, "computed with": _computed_with()}
        with contextlib.ExitStack() as stack:
            try:
                make_folder(self.folder)
                if stack.enter_context(locked(self.folder, alone=True)) is False:
                    raise ResumeError(f"{self.folder}: another process is training there now")
                write_whole(self.folder / RUN, json.dumps(_plain(held), indent=2).encode())
            except OSError as error:
                with contextlib.suppress(OSError):  # it is not empty, or not there
                    self.folder.rmdir()
                raise ResumeError(f"{self.folder}: {error.strerror}; no checkpoint can be saved") from None
            yield

    def save(self, chosen: EstimatorConfig, steps: int, saved: Saved, times: dict[str, float]) -> Path:
        """Save an estimator's training after so many steps.

        Raises:
            CheckpointError: it cannot be written; older ones stay.
        """
        notes = {"steps": steps, **times}
        return checkpoint.save_step(place(self.folder, chosen), steps, saved, last=2, notes=notes)


def place(folder: Path, chosen: EstimatorConfig) -> Path:
    """The folder of an estimator's checkpoints."""
    return folder / f"{chosen.index}_{file_name(chosen.label)}"


def newest(
    folder: Path, chosen: EstimatorConfig, like: Callable[[int], Saved]
) -> tuple[int, Saved, dict[str, Any]] | None:
    """The newest checkpoint of an estimator.

    Args:
        folder: of all checkpoints.
        chosen: the estimator.
        like: steps -> what a checkpoint after so many steps must look like.

    Returns:
        (steps, what was saved, the times until then), None if there is none.

    Raises:
        CheckpointError: it is damaged, or looks otherwise.
    """
    path = checkpoint.latest(place(folder, chosen))
    if path is None:
        return None
    try:
        notes = checkpoint.notes(path)
        saved = checkpoint.restore(path, like(notes["steps"]))
    except CheckpointError as error:
        if error.previous is None:
            raise
        mended = f"{error}; remove {path.name} and resume to go on from there"
        raise CheckpointError(mended, path, error.previous) from error
    # copied, since the state is donated and an array may share the memory of what was read
    return notes["steps"], saved._replace(state=copied(saved.state)), notes


def opened(
    config: Config, folder: str | os.PathLike | None, every: int | None, *, resume: bool
) -> Saving | None:
    """Check that a folder can take a config's checkpoints or, to resume, that it has them; write nothing.

    To resume with `every` where nothing is begun is to begin.

    Raises:
        ResumeError: there are checkpoints where a training is to begin, or none where one is to go on (and
            `every` is missing), or they are of another config.
        ValueError: `every` is missing, below 1, or given without a folder.
    """
    if folder is None:
        if every is not None or resume:
            raise ValueError(f"{'resume' if resume else 'every'} is given, but no folder for checkpoints")
        return None
    folder = Path(folder)
    if every is not None:
        positive_int("every", every)
    if not resume:
        if every is None:
            raise ValueError("every is missing: the steps from one checkpoint to the next")
        if begun(folder):
            raise ResumeError(f"{folder}: there are checkpoints in it; resume them, or name another folder")
        return Saving(folder, every)
    if every is not None and not begun(folder):
        return Saving(folder, every)
    read = _read(folder)
    others = list(_differences(read["config"], _plain(config.tables)))
    if others:
        more = f"; and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
        raise ResumeError(f"{folder}: of another config: {'; '.join(others[:SHOWN])}{more}")
    return Saving(folder, every or read["every"])


def config_of(folder: Path, overrides: Iterable[str] = ()) -> Config:
    """The config that the checkpoints in a folder are of, and what is laid over it.

    Raises:
        ResumeError: there are no checkpoints in it.
        ConfigError: something that it names is no longer known.
    """
    tables = _read(folder)["config"]
    laid_already: dict[str, Any] = {"fast": {}}
    return parse(tables | laid_already, overrides, source=f"{folder / RUN}")


def begun(folder: Path) -> bool:
    """Whether a training has begun to save its checkpoints in a folder."""
    return os.path.exists(folder / RUN)  # False too where one may not look


def holds(folder: Path) -> bool:
    """Whether a folder has a checkpoint that a training can go on from."""
    return folder.is_dir() and any(checkpoint.latest(inside) for inside in folder.iterdir())


def changed(folder: Path) -> str | None:
    """What computes otherwise here than where the checkpoints in a folder come from, if anything does.

    Raises:
        ResumeError: there are no checkpoints in it.
    """
    then, now = _read(folder)["computed with"], _computed_with()
    parts = [f"{name} was {then.get(name)}, is {now[name]}" for name in now if then.get(name) != now[name]]
    if not parts:
        return None
    return f"{'; '.join(parts)}: the last bits may differ from those of a run without an interruption"


def _read(folder: Path) -> dict[str, Any]:
    try:
        read = json.loads((folder / RUN).read_text(encoding="utf-8"))
        if not (isinstance(read, dict) and {key: type(value) for key, value in read.items()} == KINDS):
            raise ValueError
        positive_int("every", read["every"])
        return read
    except FileNotFoundError:
        raise ResumeError(f"{folder}: no checkpoints to go on with") from None
    except OSError as error:
        raise ResumeError(f"{folder}: {error.strerror}") from None
    except ValueError:
        raise ResumeError(f"{folder / RUN}: not what a run has written") from None


def _plain(value: Any) -> Any:
    """As it comes back from JSON."""
    return json.loads(json.dumps(value, default=str))


def _computed_with() -> dict[str, str | None]:
    return {**versions(), "device": jax.devices()[0].device_kind}


def _differences(then: Any, now: Any, where: str = "") -> Iterator[str]:
    """Which keys of two configs differ, and their values."""
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        then, now = dict(enumerate(then)), dict(enumerate(now))
    if isinstance(then, dict) and isinstance(now, dict):
        for key in [*then, *(key for key in now if key not in then)]:
            inside = f"{where}.{key}" if where else f"{key}"
            yield from _differences(then.get(key), now.get(key), inside)
    elif then != now and not (then != then and now != now):
        yield f"{where} was {_shown(then)}, is {_shown(now)}"


def _shown(value: Any) -> str:
    return "not given" if value is None else json.dumps(value, ensure_ascii=False)
