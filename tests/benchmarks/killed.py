"""Processes killed at random moments while they save, and a disk that is full or read-only.

    python -m tests.benchmarks.killed [--times 200] [--full]

A child saves in a loop and is killed (SIGKILL) after a random time, again and again; every child goes on from
what the one before left and first saves its step once more, as a resumed run does. Every other child pauses
before each call that syncs or renames, so that kills fall between any two of them. After every kill:

    restored   the newest checkpoint is complete and holds what its step says, and so does every
               directory there that has a checkpoint's name
    lost       the newest is older than one that a child had already reported as saved
    midway     a hidden directory was left: the kill came while one was written or removed

The control writes one file in place, as a naive program does; its kills lose the state in some rounds.
`--full` goes on with a small tmpfs (root only): saves until it is full, at many levels of what is free, and
read-only. The exit status is 0 if nothing was lost and the control lost something.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from online_grads.checkpoint import CheckpointError, latest, restore, save_step

SIZE, LEAVES, LAST = 1 << 17, 4, 1  # 2 MiB in all; what is kept
PAUSE = 0.002  # seconds
LIKE = {f"w{leaf}": np.zeros(SIZE, np.uint32) for leaf in range(LEAVES)} | {"step": 0}


def content(step):
    """The state of a step, of which no two have a number in common at the same place."""
    places = np.arange(SIZE, dtype=np.uint32) * np.uint32(2654435761)
    return {f"w{leaf}": places + np.uint32(step * LEAVES + leaf) for leaf in range(LEAVES)} | {"step": step}


def holds(state, step):
    return all(np.array_equal(leaf, state[name]) for name, leaf in content(step).items())


def step_of(path):
    return int(path.name.removesuffix("_replaced").removeprefix("step_"))


class Checkpoints:
    """Saved by this library."""

    def save(self, folder, step):
        save_step(folder, step, content(step), last=LAST)

    def found(self, folder):
        """The step that a resumed run goes on from, None if what is there is not what was saved."""
        try:
            for path in folder.glob("[!.]*"):
                if not holds(restore(path, LIKE), step_of(path)):
                    return None
            newest = latest(folder)
            return None if newest is None else step_of(newest)
        except CheckpointError as error:
            print(error)
            return None

    def midway(self, folder):
        return any(folder.glob(".*"))


class InPlace:
    """Saved as a naive program does: one file, written over."""

    def save(self, folder, step):
        np.savez(folder / "state.npz", **content(step))

    def found(self, folder):
        try:
            with np.load(folder / "state.npz") as state:
                step = int(state["step"])
                return step if holds(state, step) else None
        except Exception:  # a broken archive raises nearly anything
            return None

    def midway(self, folder):
        return self.found(folder) is None


def paused(real):
    """A system call with a pause before it."""

    def call(*args):
        time.sleep(PAUSE)
        return real(*args)

    return call


def saving(writer, folder, step, report, slow):
    """What a child does until it is killed; every finished step goes into the pipe."""
    if slow:
        os.fsync, os.rename = paused(os.fsync), paused(os.rename)
    while True:
        writer.save(folder, step)
        os.write(report, step.to_bytes(8, "little"))
        step += 1


def killed(writer, folder, step, seconds, slow):
    """Start a child that saves from a step on, kill it, and give the last step that was surely saved."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # threads and forks: nothing has used a device yet
        child = os.fork()
    if not child:
        try:
            saving(writer, folder, step, write, slow)
        finally:
            os._exit(1)
    os.close(write)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with os.fdopen(read, "rb") as pipe:
        reported = pipe.read()
    return int.from_bytes(reported[-8:], "little") if reported else step


def rounds(writer, folder, times, seed):
    """Kill so many times; counts of what was found."""
    draw = random.Random(seed)
    start = time.perf_counter()
    writer.save(folder, 0)
    one = time.perf_counter() - start
    counts = dict.fromkeys(("restored", "midway", "wrong", "lost"), 0)
    step = 0
    for number in range(times):
        slow = number % 2 == 1
        seconds = draw.uniform(0, 3 * one + 20 * PAUSE * slow)
        reported = killed(writer, folder, step, seconds, slow)
        counts["midway"] += writer.midway(folder)
        found = writer.found(folder)
        if found is None:
            counts["wrong"] += 1
            writer.save(folder, step)  # the control begins anew
            continue
        counts["restored"] += 1
        counts["lost"] += found < reported
        step = found
    return counts, step


def levels(folder):
    """Fill a small disk to many levels and save: what is refused leaves the checkpoint before."""
    refused = []
    for level in range(0, 2_400_000, 100_000):
        save_step(folder, 2 * level, content(2 * level), last=1)
        filler = folder.parent / "filler"
        filler.write_bytes(bytes(max(0, free(folder) - level)))
        error = attempt(folder, 2 * level + 1)
        filler.unlink()
        if error:
            refused.append(error)
            assert "No space left" in str(error), error
            assert error.previous == latest(folder)
        expected = 2 * level + (not error)
        assert [step_of(path) for path in folder.iterdir()] == [expected]
        assert holds(restore(latest(folder), LIKE), expected)
    return refused


def attempt(folder, step):
    """Save; the error if that was refused."""
    try:
        save_step(folder, step, content(step), last=1)
    except CheckpointError as error:
        return error
    return None


def free(folder):
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def full():
    """The same on a real small disk, if this process may mount one."""
    with tempfile.TemporaryDirectory() as place:
        mount = ["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", place]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            print("full disk: skipped, no tmpfs can be mounted here")
            return
        try:
            folder = Path(place) / "run"
            refused = levels(folder)
            print(f"full disk: refused {len(refused)} of 24, the checkpoint before intact\n  {refused[-1]}")
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
            before = latest(folder)
            error = attempt(folder, 10**9)
            assert error.previous == before
            print(f"read-only: refused, the checkpoint before intact\n  {error}")
        finally:
            subprocess.run(["umount", place], check=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--full", action="store_true", help="go on with a full and a read-only disk")
    options = parser.parse_args()
    good = True
    for writer in (Checkpoints(), InPlace()):
        with tempfile.TemporaryDirectory() as place:
            counts, step = rounds(writer, Path(place), options.times, options.seed)
        control = isinstance(writer, InPlace)
        print(
            f"{'control, in place' if control else 'save_step'}: restored {counts['restored']} of "
            f"{options.times}, wrong {counts['wrong']}, lost {counts['lost']}, killed midway "
            f"{counts['midway']}; last step {step}",
            flush=True,
        )
        good &= counts["wrong"] > 0 if control else counts["wrong"] == counts["lost"] == 0 < counts["midway"]
    if options.full:
        full()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
