"""A log of one JSON object per line."""

import json
import math
import time
from collections.abc import Iterator
from os import PathLike, truncate
from pathlib import Path

import numpy as np

from online_grads.logs.log import Log, exists_already, first_step

BUFFER = 1 << 20  # bytes: above any line, so that a line is written by one call


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
    >>> from online_grads import Metrics
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
    start = first_step(every, resume_at)
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
        raise FileExistsError(exists_already(path)) from None

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

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "log.jsonl"
    >>> _ = path.write_text('{"step": 8, "loss": 0.5}\\n{"step": 16, "loss": null}\\n{"step": 2')
    >>> read_json_lines(path)["loss"]
    array([0.5, nan])
    """
    rows = [row for _, row in _rows(Path(path))]
    names = dict.fromkeys(["step", "time", *(name for row in rows for name in row)])
    column = lambda name: [math.nan if row.get(name) is None else row[name] for row in rows]
    return {name: np.array(column(name), np.int64 if name == "step" else np.float64) for name in names}


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
