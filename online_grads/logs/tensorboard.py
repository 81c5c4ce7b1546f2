"""A log for TensorBoard, by tensorboardX."""

import time
from os import PathLike
from pathlib import Path

from online_grads.logs.log import Log, exists_already, first_step


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
    start = first_step(every, resume_at)
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
        raise FileExistsError(exists_already(folder))
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
