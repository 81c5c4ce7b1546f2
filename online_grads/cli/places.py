"""Where commands write: folders that are new or empty, and what is said if one cannot be had."""

import argparse
import importlib.util
import itertools
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from online_grads.signals import deferred


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
    folder, made = asked or default, False
    try:
        with deferred():  # a signal between the making and the note of it would leave the folder behind
            folder, made = _reserve(asked, default, option)
        yield folder
    finally:
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


def _reserve(asked: Path | None, default: Path, option: str) -> tuple[Path, bool]:
    """The folder, and whether it was made here."""
    try:
        if asked is None:
            numbered = (default.with_name(f"{default.name}-{count}") for count in itertools.count(2))
            return next(filter(_make, itertools.chain([default], numbered))), True
        made = _make(asked)
        if any(asked.iterdir()):
            raise UsageError(f"{option} {asked}: not empty, and nothing is overwritten; name another folder")
    except OSError as error:
        raise UsageError(f"{asked or default}: {error.strerror}") from None
    return asked, made


def _make(folder: Path) -> bool:
    """Make a folder, which is also what reserves it; False if there is something of that name."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
