"""Checkpoints on disks that are full, closed or damaged, and of processes that are killed."""

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from online_grads.checkpoint import CheckpointError, latest, notes, restore, save, save_step
from tests.checkpoints import numbers, same


def damaged(path, name):
    """Flip a bit in the middle of a file."""
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)


def test_every_flipped_byte_is_found_or_harmless(tmp_path):
    state = {"w": jnp.arange(3, dtype=jnp.bfloat16), "n": 3}
    path = save(tmp_path / "state", state, notes={"steps": 3})
    found = 0
    for name in ("arrays.npz", "manifest.json"):
        intact = (path / name).read_bytes()
        for at in range(len(intact)):
            (path / name).write_bytes(intact[:at] + bytes([intact[at] ^ 2]) + intact[at + 1 :])
            try:
                assert same(restore(path, state), state)
                assert notes(path) == {"steps": 3}
            except CheckpointError:
                found += 1
        (path / name).write_bytes(intact)
    assert found > 500
    assert same(restore(path, state), state)


def test_the_arrays_of_another_checkpoint_are_not_taken(tmp_path):
    """Whole and of the same shapes: only the checksums in the manifest tell."""
    path, other = (save(tmp_path / f"{value}", {"w": jnp.full(3, value)}) for value in (1.0, 2.0))
    shutil.copy(other / "arrays.npz", path / "arrays.npz")
    with pytest.raises(CheckpointError, match=r"the checksum of \['w'\] is another"):
        restore(path, {"w": jnp.zeros(3)})


def cut(path):
    content = (path / "arrays.npz").read_bytes()
    (path / "arrays.npz").write_bytes(content[: len(content) // 2])


def cut_manifest(path):
    content = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(content[: len(content) // 2])


def newer(path):
    content = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(content | {"version": 2}))


def changed(path):
    content = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(content.replace('"notes": {}', '"notes": {"steps": 3}'))


def a_file(path):
    shutil.rmtree(path)
    path.write_text("")


def emptied(path):
    for file in path.iterdir():
        file.unlink()


DAMAGE = {
    "a flipped bit": (lambda path: damaged(path, "arrays.npz"), "is damaged: .*'n'"),
    "cut": (cut, "is damaged or truncated: arrays.npz cannot be read"),
    "cut manifest": (cut_manifest, "is damaged: manifest.json is no JSON"),
    "changed manifest": (changed, "is damaged: the checksum of manifest.json is another"),
    "no arrays": (lambda path: (path / "arrays.npz").unlink(), r"cannot be read: No such file .*arrays.npz"),
    "no manifest": (
        lambda path: (path / "manifest.json").unlink(),
        "is no checkpoint: it has no manifest.json",
    ),
    "foreign": (lambda path: (path / "manifest.json").write_text("[]"), "not a checkpoint of online-grads"),
    "newer": (newer, "has format 2 .*reads format 1"),
    "a file": (a_file, "is a file"),
    "empty": (emptied, "is empty"),
    "nothing": (shutil.rmtree, "does not exist"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_named_and_the_previous_one_offered(tmp_path, kind):
    damage, message = DAMAGE[kind]
    path = [save_step(tmp_path, step, numbers(step), last=9) for step in (1, 2, 3, 4)][2]
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        restore(path, numbers(0))
    assert caught.value.path == path
    assert caught.value.previous == tmp_path / "step_000000000002"
    assert str(caught.value).endswith(f"; the newest intact one is {tmp_path / 'step_000000000002'}")
    damaged(tmp_path / "step_000000000002", "arrays.npz")
    with pytest.raises(CheckpointError) as caught:
        restore(path, numbers(0))
    assert caught.value.previous == tmp_path / "step_000000000001"
    assert same(restore(caught.value.previous, numbers(0)), numbers(1))


class Disk:
    """A disk that is found full at one of the calls that write, and stays so."""

    def __init__(self, room):
        self.room = room

    def limited(self, real):
        def call(*args, **kwargs):
            self.room -= 1
            if self.room < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **kwargs)

        return call


WRITING = [
    (os, "fsync"),
    (os, "rename"),
    (Path, "mkdir"),
    (Path, "write_text"),
    (np.lib.format, "write_array"),
    (zipfile.ZipFile, "_write_end_record"),
]


@pytest.mark.parametrize("room", range(12))
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, room):
    old = [save_step(tmp_path, step, numbers(step), last=2) for step in (1, 2)]
    new = tmp_path / "step_000000000003"
    with monkeypatch.context() as patch:
        disk = Disk(room)
        for owner, name in WRITING:
            patch.setattr(owner, name, disk.limited(getattr(owner, name)))
        expected = contextlib.nullcontext() if room >= 11 else pytest.raises(CheckpointError)
        with expected as caught:
            save_step(tmp_path, 3, numbers(3), last=2)
    if caught:
        assert "No space left on device" in str(caught.value)
        assert new.exists() or caught.value.previous == old[1]
        assert {*old} <= {*tmp_path.iterdir()} <= {*old, new}
    assert new.exists() == (room >= 9)
    assert all(same(restore(path, numbers(0)), numbers(int(path.name[-1]))) for path in tmp_path.iterdir())
    save_step(tmp_path, 4, numbers(4), last=1)
    assert [path.name[-1] for path in tmp_path.iterdir()] == ["4"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(CheckpointError, match=f"cannot write {folder}.*(Not a directory|File exists)"):
            save_step(folder, 1, numbers(1))
    path = save_step(tmp_path / "run", 1, numbers(1))
    for number in (errno.EACCES, errno.EROFS):  # tests may run as root, who may write anywhere

        def refused(*_, number=number):
            raise OSError(number, os.strerror(number), str(path.parent))

        for name, use in (
            ("mkdir", lambda: save_step(path.parent, 2, numbers(2))),
            ("read_bytes", lambda: restore(path, numbers(0))),
            ("iterdir", lambda: latest(path.parent)),
        ):
            with monkeypatch.context() as patch:
                patch.setattr(Path, name, refused)
                with pytest.raises(CheckpointError, match=r"cannot (write|be read|read)") as caught:
                    use()
            assert f"{os.strerror(number)} ({path.parent})" in str(caught.value)
            assert caught.value.previous == (path if name == "mkdir" else None)
    (path.parent / "step_000000000002").write_text("a file in its place")
    with pytest.raises(CheckpointError, match=r"cannot write .*Not a directory"):
        save_step(path.parent, 2, numbers(2))
    assert sorted(path.name for path in path.parent.iterdir()) == [path.name, "step_000000000002"]


def test_a_killed_process_leaves_a_complete_checkpoint():
    """A small round of the command that kills 200 times; its writer in place loses its file."""
    command = [sys.executable, "-m", "tests.benchmarks.killed", "--times", "12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "restored 12 of 12" in done.stdout
