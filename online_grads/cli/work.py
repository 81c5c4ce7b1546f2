"""What the commands that work on a config share: their arguments, reading it, writing what was found."""

import argparse
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from online_grads import config
from online_grads.cli.places import UsageError, require, reserved
from online_grads.signals import deferred


class UnwrittenError(UsageError):
    """Results that cannot be written."""


def add_arguments(parser: argparse.ArgumentParser, suffix: str, *, needed: bool = True) -> None:
    """The config, what is changed in it, and where the results go: by default runs/CONFIG<suffix>."""
    parser.add_argument("config", metavar="CONFIG.toml", nargs=None if needed else "?")
    parser.add_argument(
        "--set", action="append", default=[], metavar="section.key=value", help="replace a value"
    )
    parser.add_argument("--fast", action="store_true", help="the config's fast variant: run.fast=true")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help=f"a new or empty folder; default: runs/CONFIG{suffix}"
    )


def read(arguments: argparse.Namespace, changes: Iterable[str] = ()) -> config.Config:
    """The config with what the arguments change in it, and then `changes`, as after --set."""
    chosen = config.load(arguments.config, [*overrides(arguments), *changes])
    require("matplotlib", "tqdm")
    return chosen


def overrides(arguments: argparse.Namespace) -> list[str]:
    """What the arguments change in the config, as after --set."""
    return [*["run.fast=true"] * arguments.fast, *arguments.set]


def folder_for(arguments: argparse.Namespace, suffix: str) -> AbstractContextManager[Path]:
    """The folder to write into, reserved before the work begins."""
    return reserved(arguments.out, Path("runs") / f"{Path(arguments.config).stem}{suffix}")


def written(write: Callable[..., None], found: Any, folder: Path, *more: Any) -> int:
    """Write the results, all of them though a signal comes meanwhile; the exit status."""
    with deferred() as received:
        try:
            write(found, folder, *more)
        except OSError as error:
            raise UnwrittenError(f"{folder}: the results cannot be written: {error.strerror}") from None
        number = received()
    return 0 if number is None else 128 + number
