"""The command line: `online-grads run CONFIG.toml`, `compare`, `sweep`, `bench` and `list`."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from online_grads.checkpoint import CheckpointError
from online_grads.cli import bench, interrupts, listing, run, sweep
from online_grads.cli.places import UsageError
from online_grads.resume import ResumeError
from online_grads.tables import ConfigError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments, by default those of the process.

    Returns:
        The exit status: 0, 1 if the data were not finite, 2 for a mistake in arguments or config and for
        files that cannot be written or read, 130 if interrupted and 143 if terminated.
    """
    try:
        with interrupts.terminable():
            arguments = _parser().parse_args(argv)
            status = arguments.command(arguments)
            sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, ConfigError, ResumeError, CheckpointError) as error:
        print(f"online-grads: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("online-grads: interrupted, nothing written", file=sys.stderr)
        return interrupts.answer(interrupt)


def entry() -> NoReturn:
    """Run the command line and leave the process."""
    status = main()
    if status in (130, 143):
        # compiled programs may still run in their threads; to tear the interpreter down under them crashes
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="online-grads", description="Online gradient estimators for recurrent networks.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for each in (run, sweep, bench, listing):
        each.add(commands)
    return parser
