"""Where commands write: folders that are new or empty, and what is said if one cannot be had."""

import argparse
import importlib.util
import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class UsageError(Exception):
    """A mistake on the command line, in one line."""


def require(*names: str) -> None:
    """Refuse to begin where packages are missing.

    Raises:
        UsageError: they are; it says what to install.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UsageError(f"{' and '.join(missing)} missing: pip install online-grads[run]")


def count(text: str) -> int:
    """The type of an argument that counts something."""
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"expected an integer of at least 1, got {text!r}")
    return int(text)


@contextmanager
def reserved(asked: Path | None, default: Path, option: str = "--out") -> Iterator[Path]:
    """The folder asked for, if it is empty; else the first of default, default-2, ... that does not exist.

    One that is made here is removed in the end if nothing was written into it.
    """
    folder = asked or default
    try:
        if asked is None:
            numbered = (default.with_name(f"{default.name}-{count}") for count in itertools.count(2))
            folder, made = next(filter(_make, itertools.chain([default], numbered))), True
        else:
            made = _make(folder)
            if any(folder.iterdir()):
                raise UsageError(
                    f"{option} {folder}: not empty, and nothing is overwritten; name another folder"
                )
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}") from None
    try:
        yield folder
    finally:
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _make(folder: Path) -> bool:
    """Make a folder, which is also what reserves it; False if there is something of that name."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
