"""The checkpoints of a folder: their names, their order, and which of them are intact."""

import re
from pathlib import Path

from online_grads.checkpoint_format import MANIFEST, Unreadable, read_arrays, read_manifest

ASIDE = "_replaced"  # at the end of the name of a checkpoint that another one of its step replaces
_NAME = re.compile(rf"step_(\d{{12,}})({ASIDE})?")


def name_of(step: int) -> str:
    """The name of the checkpoint of a step.

    >>> name_of(1024)
    'step_000000001024'
    """
    return f"step_{step:012}"


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint; -1 if it is named otherwise.

    >>> step_of(Path("run") / name_of(1024))
    1024
    """
    return _order(path)[0]


def found(folder: Path) -> list[Path]:
    """The checkpoints of a folder, one per step, oldest first; none if it is no folder.

    Raises:
        OSError: if the folder cannot be read.
    """
    if not folder.is_dir():
        return []
    complete = [path for path in folder.iterdir() if _order(path)[0] >= 0 and (path / MANIFEST).is_file()]
    return list({_order(path)[0]: path for path in sorted(complete, key=_order)}.values())


def previous_of(path: Path, *, itself: bool = False) -> Path | None:
    """The newest checkpoint before one in its folder, or that one, of which every checksum is right."""
    most = _order(path) if itself else (_order(path)[0], False)
    try:
        older = [other for other in found(path.parent) if _order(other) <= most]
    except OSError:
        return None
    return next(filter(_intact, reversed(older)), None)


def _order(path: Path) -> tuple[int, bool]:
    """Where a checkpoint stands among those of its folder; before all of them if its name is no step's."""
    match = _NAME.fullmatch(path.name)
    return (int(match[1]), match[2] is None) if match else (-1, False)


def _intact(path: Path) -> bool:
    try:
        read_arrays(path, read_manifest(path))
    except (Unreadable, OSError):
        return False
    return True
