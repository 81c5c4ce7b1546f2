"""Writing files and folders so that no half of one is ever seen."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has no such locks: nothing is known about other writers there
    fcntl = None  # type: ignore[assignment]


def write_whole(path: Path, content: bytes | memoryview) -> None:
    """Write bytes to a file, which is complete or as it was.

    They go to a hidden file beside it first, which is synced to the disk and then takes its place.

    Args:
        path: where to, in a folder that exists.
        content: all that the file then holds.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_whole(Path(folder) / "numbers.json", b"[1, 2]")
    ...     [(path.name, path.read_text()) for path in Path(folder).iterdir()]
    [('numbers.json', '[1, 2]')]
    """
    beside = path.with_name(f".{path.name}.part")
    try:
        beside.write_bytes(content)
        _sync(beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def file_name(label: str) -> str:
    """A label as part of a file's name: ASCII letters, digits, dots and hyphens, 100 at most.

    >>> file_name("UORO, ρ = 0.5"), len(file_name(300 * "n"))
    ('UORO_0.5', 100)
    """
    return re.sub(r"[^A-Za-z0-9.-]+", "_", label).strip("_")[:100]


@contextlib.contextmanager
def whole_folder(path: Path, *, aside: Path | None = None) -> Iterator[Path]:
    """A new folder, which is there with every file that the body wrote into it, or not at all.

    The body gets a hidden folder beside it. Then its files are synced to the disk and the folder is
    renamed. If the body raises, nothing is left; if the process is killed, a hidden folder is, which
    `clear_leftovers` removes.

    Args:
        path: the folder, in one that exists.
        aside: where a folder that is at `path` already is renamed to, once the new one is complete.

    Raises:
        OSError: if something cannot be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with whole_folder(Path(folder) / "run") as beside:
    ...         _ = (beside / "numbers.json").write_text("[1, 2]")
    ...         before = (Path(folder) / "run").exists()
    ...     before, (Path(folder) / "run" / "numbers.json").read_text()
    (False, '[1, 2]')
    """
    beside = _hidden(path)
    with locked(path.parent, alone=False):
        try:
            beside.mkdir()
            yield beside
            for written in [*beside.iterdir(), beside]:
                _sync(written)
            if aside is not None and path.is_dir():
                os.rename(path, aside)
            os.rename(beside, path)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        _sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, as far as they are missing, and sync them to the disk.

    Raises:
        OSError: if one cannot be made.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a folder, which is complete until it is gone.

    It is renamed to a hidden one first. What of that cannot be removed now is left to `clear_leftovers`.
    One that somebody else removed already is no error.

    Raises:
        OSError: if it cannot be renamed.
    """
    hidden = _hidden(path)
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove the hidden folders that killed processes left in a folder.

    They stay while another process or thread writes there, and where the file system has no locks.
    """
    with locked(folder, alone=True) as alone:
        if alone:
            for left in [left for left in folder.iterdir() if _HIDDEN.fullmatch(left.name)]:
                shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path, *, alone: bool) -> Iterator[bool | None]:
    """Hold a writer's lock on a folder, or one that no writer has beside it.

    The kernel lets go of the lock of a process that dies.

    Yields:
        Whether it is held; None if the file system has no locks.

    Raises:
        OSError: if the folder cannot be opened.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, locked(Path(folder), alone=True) as first:
    ...     with locked(Path(folder), alone=True) as second:
    ...         first, second
    (True, False)
    """
    if fcntl is None:
        yield None
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if alone else fcntl.LOCK_SH)
        held: bool | None = True
    except BlockingIOError:
        held = False
    except OSError:
        held = None
    try:
        yield held
    finally:
        if held:  # closing is not enough if the process was forked meanwhile
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


_HIDDEN = re.compile(r"\..+\.part-[0-9a-f]{16}")


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}.part-{secrets.token_hex(8)}")


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names that a folder lists."""
    if path.is_dir() and os.name == "nt":  # where a folder cannot be opened
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
