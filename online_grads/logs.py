"""Callbacks that write a run down: JSON lines, TensorBoard, and the numbers for any other logger.

`run` calls `callback(step, metrics)` between chunks; any function of the two will do, see `Callback`. Those
here share `scalars`, which makes named numbers of a chunk's metrics, so that another logger takes one line:

    run(..., callback=lambda step, metrics: wandb.log(scalars(metrics), step=step))
"""

import json
import math
import re
import time
import weakref
from collections.abc import Callable, Iterator
from os import PathLike, truncate
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from online_grads.arguments import positive_int
from online_grads.types import Metrics

BUFFER = 1 << 20  # bytes: above any line, so that a line is written by one call


class Callback(Protocol):
    """What `run` calls between chunks; what it returns is not looked at.

    An exception that it raises ends the run and reaches the caller as it is. The state that the caller gave
    to `run` is still as it was; how far the run had come is in its checkpoints, if it makes any. A
    checkpoint is written after the callback was called, so that what a log says goes at least as far.
    """

    def __call__(self, step: int, metrics: Metrics, /) -> Any:
        """Look at a chunk.

        Args:
            step: steps of the stream done so far, this chunk included.
            metrics: the chunk's, as NumPy arrays with a leading axis of its segments; a field that is not
                kept is None.
        """


def scalars(metrics: Metrics) -> dict[str, float]:
    """A chunk's metrics as a few named numbers, for any logger.

        loss        mean over the chunk
        grad_norm   of the last segment
        finite      fraction of the segments
        info_NAME   mean over the chunk, of the entries of info that are one number per segment

    What is not kept is left out. Names are letters, digits and underscores: `info["noise_loss[0]"]` is
    `info_noise_loss_0`. Numbers that are not finite stay what they are.

    Args:
        metrics: one learner's, with a leading axis of segments or of one segment, without.

    Returns:
        name -> Python float.

    Raises:
        ValueError: the metrics have more axes, as those of many learners have.

    >>> norms = np.array([3.0, 1.0, 2.0])
    >>> scalars(Metrics(norms / 2, norms > 1, norms, None, {"kept": np.array([4, 4, 7])}))
    {'loss': 1.0, 'grad_norm': 2.0, 'finite': 0.6666666666666666, 'info_kept': 5.0}
    """
    fields = {name: getattr(metrics, name) for name in ("loss", "grad_norm", "finite")}
    fields = {name: values for name, values in fields.items() if values is not None}
    axes = max(map(np.ndim, fields.values()), default=1)
    if axes > 1:
        shapes = ", ".join(f"{name} {list(np.shape(values))}" for name, values in fields.items())
        raise ValueError(f"expected one learner's metrics, with an axis of segments at most; got {shapes}")
    if "grad_norm" in fields:
        fields["grad_norm"] = np.atleast_1d(fields["grad_norm"])[-1]
    for name, values in (metrics.info or {}).items():
        if np.ndim(values) == axes:
            fields[re.sub(r"\W+", "_", f"info_{name}").rstrip("_")] = values
    with np.errstate(invalid="ignore", over="ignore"):
        return {name: float(np.mean(values, dtype=np.float64)) for name, values in fields.items()}


class Log:
    """A callback that writes a chunk's `scalars` somewhere; made by `json_lines` and `tensorboard`.

    `with` closes it in the end. Without, it is closed when it is no longer used or the process ends; what
    it was told is written already.
    """

    def __init__(
        self,
        write: Callable[[int, dict[str, float]], None],
        close: Callable[[], None],
        *,
        every: int,
        start: int,
    ):
        self._write = write
        self._every = every
        self._step = start
        self.close = weakref.finalize(self, close)  # which acts once

    def __call__(self, step: int, metrics: Metrics, /) -> None:
        """Write, if this chunk reaches another `every` steps.

        Raises:
            ValueError: the step is not after the one before.
            OSError: it cannot be written, for instance as the disk is full.
        """
        if step <= self._step:
            raise ValueError(
                f"the log has come to step {self._step} already and is told of step {step}; "
                "a run needs a log of its own"
            )
        before, self._step = self._step, int(step)
        if self._step // self._every > before // self._every:
            self._write(self._step, scalars(metrics))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def json_lines(path: str | PathLike, *, every: int = 1, resume_at: int | None = None) -> Log:
    """A log of one JSON object per line: step, time (Unix, in seconds) and the chunk's `scalars`.

    A number that is not finite is null. A line is handed to the system whole and at once: `tail -f` follows
    it, and a process that is killed leaves nothing worse than a cut last line. `read_json_lines` reads it.

    Args:
        path: the file, in a folder that exists.
        every: steps between lines: one is written at the first chunk end that reaches another `every`.
        resume_at: the step from which the run goes on: later lines are dropped, and the new ones follow. 0
            begins anew. Without it the file must not exist.

    Returns:
        A `Callback` and context manager.

    Raises:
        ValueError: `every` is below 1, or the file to go on with is no such log, which is left as it is.
        FileExistsError: there is such a file already, and no `resume_at`.
        OSError: the folder does not exist, the path is a folder, or it cannot be written.

    >>> import tempfile
    >>> ones = np.ones(8)
    >>> path = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> with json_lines(path) as log:
    ...     log(8, Metrics(0.5 * ones, ones > 0, ones, None, {}))
    ...     log(16, Metrics(np.nan * ones, ones < 0, np.inf * ones, None, {}))
    >>> print(path.read_text())  # doctest: +ELLIPSIS
    {"step": 8, "time": ..., "loss": 0.5, "grad_norm": 1.0, "finite": 1.0}
    {"step": 16, "time": ..., "loss": null, "grad_norm": null, "finite": 0.0}
    <BLANKLINE>
    >>> with json_lines(path, resume_at=8) as log:  # the checkpoint that the run goes on from is of step 8
    ...     log(16, Metrics(0.25 * ones, ones > 0, ones, None, {}))
    >>> read_json_lines(path)["loss"]
    array([0.5 , 0.25])
    """
    start = _checked(every, resume_at)
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; the log is a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: there is no folder {path.parent}")
    if resume_at is not None and path.exists():
        truncate(path, max((end for end, row in _rows(path) if row["step"] <= start), default=0))
    try:
        file = open(path, "xb" if resume_at is None else "ab", buffering=BUFFER)  # noqa: SIM115
    except FileExistsError:
        raise FileExistsError(_exists(path)) from None

    def write(step: int, values: dict[str, float]) -> None:
        told = {name: value if math.isfinite(value) else None for name, value in values.items()}
        row = {"step": step, "time": round(time.time(), 3), **told}
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()

    return Log(write, file.close, every=every, start=start)


def read_json_lines(path: str | PathLike) -> dict[str, np.ndarray]:
    """A log of `json_lines` as columns; it may be one that is being written.

    A last line that was cut is left out.

    Args:
        path: the file.

    Returns:
        name -> [lines]: `step` int64, the others float64, NaN for null and where a line has no such name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such log.
    """
    rows = [row for _, row in _rows(Path(path))]
    names = dict.fromkeys(["step", "time", *(name for row in rows for name in row)])
    column = lambda name: [math.nan if row.get(name) is None else row[name] for row in rows]
    return {name: np.array(column(name), np.int64 if name == "step" else np.float64) for name in names}


def tensorboard(folder: str | PathLike, *, every: int = 1, resume_at: int | None = None) -> Log:
    """A log of the chunks' `scalars` for TensorBoard: `tensorboard --logdir FOLDER` shows it.

    Needs tensorboardX: pip install online-grads[tensorboard]. What the log is told is on the disk before the
    run goes on.

    Args:
        folder: one run's; made if missing.
        every: steps between entries: as in `json_lines`.
        resume_at: the step from which the run goes on: TensorBoard hides what was written for later ones.
            Without it the folder must not hold another run's events.

    Returns:
        A `Callback` and context manager.

    Raises:
        ImportError: tensorboardX is missing.
        ValueError: `every` is below 1.
        FileExistsError: the folder has events already, and no `resume_at`.
        OSError: the path is a file, or the folder cannot be written.
    """
    start = _checked(every, resume_at)
    try:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary
    except ImportError:
        raise ImportError(
            "a log for TensorBoard needs tensorboardX: pip install online-grads[tensorboard]"
        ) from None
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; a log for TensorBoard is a folder")
    folder.mkdir(parents=True, exist_ok=True)
    earlier = len(list(folder.glob("events.out.tfevents.*")))
    if earlier and resume_at is None:
        raise FileExistsError(_exists(folder))
    # Not its SummaryWriter, whose thread dies of a full disk: then the tenth call after waits for ever. The
    # suffix: by their names alone two files made in the same second would be the same.
    writer = EventsWriter(str(folder / "events"), f".{earlier}")

    def add(step: int, **content) -> None:
        writer.write_event(Event(wall_time=time.time(), step=step, **content))

    if resume_at is not None:
        add(start + 1, session_log=SessionLog(status=SessionLog.START))

    def write(step: int, values: dict[str, float]) -> None:
        entries = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        add(step, summary=Summary(value=entries))
        writer.flush()

    return Log(write, writer.close, every=every, start=start)


def several(*callbacks: Callback) -> Callback:
    """All of them as one callback, called in this order; the first that raises ends it.

    Raises:
        TypeError: one of them cannot be called.

    >>> both = several(lambda step, metrics: print(step), lambda step, metrics: print(scalars(metrics)))
    >>> both(8, Metrics(np.ones(8), None, None, None, {}))
    8
    {'loss': 1.0}
    """
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"expected functions of (step, metrics), got {callback!r}")

    def call(step: int, metrics: Metrics, /) -> None:
        for callback in callbacks:
            callback(step, metrics)

    return call


def _checked(every: int, resume_at: int | None) -> int:
    """The step that a log begins after."""
    positive_int("every", every)
    return 0 if resume_at is None else positive_int("resume_at", resume_at, least=0)


def _exists(path: Path) -> str:
    return f"{path}: there is a log already; go on with it from a step by resume_at=..., or name another"


def _rows(path: Path) -> Iterator[tuple[int, dict]]:
    """The rows of a log, each with the byte at which its line ends; without a last line that was cut."""
    end, begin = 0, b'{"step": '
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            # a file of one cut line is taken for a log, to be truncated, only if it begins like one
            if not line.endswith(b"\n") and (number > 1 or line[: len(begin)] == begin[: len(line)]):
                return
            end += len(line)
            try:
                row = json.loads(line)
                int(row["step"])
            except (ValueError, TypeError, KeyError):
                raise ValueError(
                    f"{path}: line {number} is none of a log of json_lines: {line[:60]!r}"
                ) from None
            yield end, row
