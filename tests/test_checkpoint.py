"""Checkpoints: complete or absent, back bit by bit, and clear about what is wrong."""

import contextlib
import errno
import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

from online_grads import files, learner, uoro
from online_grads.checkpoint import CheckpointError, latest, notes, restore, save, save_step
from tests import models

PYTHON = (bool, int, float, complex)


class Pair(NamedTuple):
    first: object
    second: object


def bits(leaf):
    """All that makes a leaf what it is."""
    if isinstance(leaf, PYTHON) and not isinstance(leaf, np.generic):
        return type(leaf), repr(leaf)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return str(jax.random.key_impl(leaf)), leaf.shape, np.asarray(jax.random.key_data(leaf)).tobytes()
    kind = jax.Array if isinstance(leaf, jax.Array) else type(leaf)
    weak = getattr(leaf, "weak_type", False)
    return kind, leaf.dtype, leaf.shape, weak, np.asarray(leaf).tobytes()


def same(first, second):
    return jax.tree.structure(first) == jax.tree.structure(second) and list(
        map(bits, jax.tree.leaves(first))
    ) == list(map(bits, jax.tree.leaves(second)))


def every_kind():
    """Leaves of every kind, with numbers that a conversion would change."""
    nan = np.array([0x7FF8_0000_0000_1234, 0xFFF0_0000_0000_0001, 0x8000_0000_0000_0000], np.uint64)
    octets = np.arange(256, dtype=np.uint8)
    floats = "float8_e4m3fn float8_e5m2 float8_e4m3b11fnuz".split()
    return {
        "jax": {name: jnp.asarray(octets.view(getattr(ml_dtypes, name))) for name in floats},
        "bfloat16": jnp.asarray(np.arange(65536, dtype=np.uint16).view(ml_dtypes.bfloat16)),
        "int4": jnp.arange(-8, 8, dtype=jnp.int4),
        "bool": jnp.array([[True, False]]),
        "nan": jnp.asarray(nan.view(np.float64)),
        "complex": jnp.asarray(nan[:2].view(np.complex128)),
        "int": jnp.array(-(2**63)),
        "empty": jnp.zeros((0, 3), jnp.int16),
        "weak": Pair(jnp.asarray(-0.0), jnp.full((2, 2), 3)),
        "keys": [jax.random.split(jax.random.key(7, impl=impl), 2) for impl in ("threefry2x32", "rbg")],
        "raw key": jax.random.PRNGKey(3),
        "numpy": (np.arange(12.0).reshape(3, 4)[::2, ::-1], np.asfortranarray(np.eye(2, 3)), np.array(2.5)),
        "numpy more": [np.arange(3, dtype=">f4"), np.float32(-0.0), np.uint8(3), np.ones(2, ml_dtypes.int4)],
        "python": Pair((True, -(2**63), float("nan")), [-0.0, 1e-320, 2 - 3j]),
        "nothing": (None, (), {}),
    }


@functools.cache
def learning():
    """A learner's state of today."""
    model = models.vanilla()
    online = learner(uoro(model), optax.adam(0.1))
    return online.init(*model.init(jax.random.key(0)), key=jax.random.key(1))


def numbers(step):
    """A state of which the step tells the content."""
    return {"n": np.arange(1000) * 7 + step, "step": step}


def damaged(path, name):
    """Flip a bit in the middle of a file."""
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)


def test_everything_comes_back_bit_by_bit(tmp_path):
    state = every_kind() | {"learner": learning()}
    path = save(tmp_path / "a" / "b", state, notes={"loss": 0.5, "of": {"1": [None, "ü"]}})
    assert path == tmp_path / "a" / "b"
    assert same(restore(path, state), state)
    assert notes(path) == {"loss": 0.5, "of": {"1": [None, "ü"]}}
    assert not same(restore(path, state), state | {"bool": jnp.array([[True, True]])})
    manifest = json.loads((path / "manifest.json").read_text())
    assert [leaf["name"] for leaf in manifest["leaves"]][-1] == "['weak'].second"
    assert len(manifest["leaves"]) == len(jax.tree.leaves(state))
    with np.load(path / "arrays.npz", allow_pickle=False) as arrays:
        assert len(arrays.files) == len(manifest["leaves"])


def test_shapes_alone_are_enough(tmp_path):
    state = learning()
    path = save(tmp_path / "state", state)
    assert same(restore(path, jax.eval_shape(lambda: state)), state)


def test_an_array_goes_where_like_was_put(tmp_path):
    state = {"w": jnp.arange(4.0), "key": jax.random.split(jax.random.key(0), 2)}
    path = save(tmp_path / "state", state)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    for like in (
        jax.device_put(state, placed),
        jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=placed), state),
    ):
        restored = restore(path, like)
        assert same(restored, state)
        assert [leaf.sharding for leaf in jax.tree.leaves(restored)] == [placed] * 2
    assert not restore(path, state)["w"].committed


def test_a_difference_is_named(tmp_path):
    like = {"a": jnp.zeros(2), "b": [jnp.zeros(2, jnp.int32)], "k": jax.random.key(0), "n": 1, "gone": 1.0}
    other = jax.random.key(0, impl="rbg")
    state = {"a": jnp.zeros((2, 1)), "b": [jnp.zeros(2, jnp.int16)], "k": other, "n": jnp.int32(1), "new": 1}
    path = save_step(tmp_path, 2, state)
    save_step(tmp_path, 1, state)
    with pytest.raises(CheckpointError) as caught:
        restore(path, like)
    assert str(caught.value) == (
        f"{path} differs from like: ['gone'] is missing from the checkpoint; ['new'] is in the checkpoint "
        "only; ['a']: expected float64 [2], the checkpoint has float64 [2, 1]; "
        "['b'][0]: expected int32 [2], the checkpoint has int16 [2]; and 2 more"
    )
    assert caught.value.previous is None
    for name, wanted, has in (
        ("k", "key<threefry2x32> []", "key<rbg> []"),
        ("n", "Python int []", "int32 []"),
    ):
        with pytest.raises(CheckpointError, match="differs") as caught:
            restore(path, state | {name: like[name]})
        assert str(caught.value).endswith(f"['{name}']: expected {wanted}, the checkpoint has {has}")


def test_64_bits_are_not_cut(tmp_path):
    state = {"w": jnp.ones(2)}
    path, shapes = save(tmp_path / "state", state), jax.eval_shape(lambda: state)
    jax.config.update("jax_enable_x64", False)
    try:
        with pytest.raises(
            CheckpointError, match=r"expected float32 \[2\], the checkpoint has float64 \[2\]"
        ):
            restore(path, {"w": jnp.ones(2)})
        with pytest.raises(ValueError, match=r"float64, which needs .*jax_enable_x64"):
            restore(path, shapes)
        assert same(restore(path, {"w": np.zeros(2)}), {"w": np.ones(2)})
    finally:
        jax.config.update("jax_enable_x64", True)


def test_what_cannot_be_saved_is_refused(tmp_path):
    path = tmp_path / "state"
    given = jnp.ones(2)
    given.delete()
    for state, error, message in (
        ({"act": "tanh"}, TypeError, r"state\['act'\] must be an array, .* got 'tanh'"),
        ([jnp.tanh], TypeError, r"state\[0\] must be an array"),
        (np.zeros(2, jax.dtypes.float0), TypeError, "cannot be saved"),
        (np.array(["x"]), TypeError, "cannot be saved"),
        (np.array([None]), TypeError, "object cannot be saved"),
        (np.array(["2026"], "M8[D]"), TypeError, "cannot be saved"),
        (np.ma.array([1, 2], mask=[0, 1]), TypeError, "must be an array"),
        (jax.ShapeDtypeStruct((2,), jnp.float32), TypeError, "without values"),
        ({"w": given}, ValueError, r"state\['w'\] was given away"),
        (2**64, ValueError, "64 bits"),
    ):
        with pytest.raises(error, match=message):
            save(path, state)
    for wrong, error in (({"x": jnp.ones(2)}, TypeError), ({"x": float("nan")}, ValueError)):
        with pytest.raises(error, match="notes must be JSON"):
            save(path, {}, notes=wrong)
    with pytest.raises(TypeError, match="is being traced"):
        jax.jit(lambda state: save(path, state))(jnp.ones(2))
    with pytest.raises(ValueError, match="last must be at least 1"):
        save_step(tmp_path, 1, {}, last=0)
    with pytest.raises(ValueError, match="step must be at least 0"):
        save_step(tmp_path, -1, {})
    with pytest.raises(CheckpointError, match=r"cannot write .* too long"):
        save(tmp_path / ("n" * 300), {})
    assert list(tmp_path.iterdir()) == []


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


def test_a_folder_of_checkpoints_is_told_from_one(tmp_path):
    path = save_step(tmp_path, 7, numbers(7))
    with pytest.raises(CheckpointError, match=f"is a folder of checkpoints: its latest is {path}"):
        restore(tmp_path, numbers(0))
    assert latest(tmp_path / "absent") is latest(path / "manifest.json") is None


def test_the_newest_are_kept(tmp_path):
    names = lambda: sorted(path.name[-2:] for path in tmp_path.iterdir())
    for step in (10, 20, 30, 40):
        path = save_step(tmp_path, step, numbers(step), last=2)
        assert latest(tmp_path) == path
    assert names() == ["30", "40"]
    assert save_step(tmp_path, 5, numbers(5), last=1).is_dir()
    assert names() == ["05", "40"]
    assert same(restore(latest(tmp_path), numbers(0)), numbers(40))


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path, monkeypatch):
    for step in (1, 2):
        path = save_step(tmp_path, step, numbers(step), last=1)
    for content in (3, 4):
        assert save_step(tmp_path, 2, numbers(content), last=1, notes={"again": content}) == path
        assert same(restore(path, numbers(0)), numbers(content))
        assert notes(path) == {"again": content}
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(CheckpointError, match="exists already"):
        save(path, numbers(5))
    renamed = []

    def killed(source, target, rename=os.rename):
        renamed.append(target)
        if len(renamed) == 2:  # the old one is aside, the new one not there yet
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save_step(tmp_path, 2, numbers(5), last=1)
    assert same(restore(latest(tmp_path), numbers(0)), numbers(4))
    assert save_step(tmp_path, 2, numbers(6), last=1) == path
    assert same(restore(latest(tmp_path), numbers(0)), numbers(6))
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_are_never_taken_and_go_unless_somebody_writes(tmp_path):
    path = save_step(tmp_path, 1, numbers(1))
    left = tmp_path / ".step_000000000002.part-0123456789abcdef"
    shutil.copytree(path, left)
    shutil.copytree(path, tmp_path / "step_000000000003.mine")
    assert latest(tmp_path) == path
    with files.whole_folder(tmp_path / "other"):  # a writer that is at it
        save_step(tmp_path, 2, numbers(2))
        assert left.exists()
    save_step(tmp_path, 4, numbers(4))
    assert not left.exists()
    assert (tmp_path / "step_000000000003.mine").exists()


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


def test_an_error_survives_a_process_pool(tmp_path):
    error = pickle.loads(pickle.dumps(CheckpointError("gone", tmp_path, tmp_path / "old")))
    assert (str(error), error.path, error.previous) == ("gone", tmp_path, tmp_path / "old")


def test_a_killed_process_leaves_a_complete_checkpoint():
    """A small round of the command that kills 200 times; its writer in place loses its file."""
    command = [sys.executable, "-m", "tests.benchmarks.killed", "--times", "12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "restored 12 of 12" in done.stdout


def test_orbax_holds_the_same(tmp_path):
    orbax_checkpoint = pytest.importorskip("online_grads.orbax_checkpoint")
    kinds = ("bfloat16", "nan", "empty", "keys", "numpy", "python", "nothing")
    state = {kind: every_kind()[kind] for kind in kinds}
    assert same(orbax_checkpoint.restore(orbax_checkpoint.save(tmp_path / "state", state), state), state)
    shapes = jax.eval_shape(lambda: learning())
    path = orbax_checkpoint.save(tmp_path / "learner", learning())
    assert same(orbax_checkpoint.restore(path, shapes), learning())
    weak = {"step": jnp.asarray(1.5), "strong": jnp.float32(1.5)}
    read = orbax_checkpoint.restore(orbax_checkpoint.save(tmp_path / "weak", weak), weak)
    assert {name: leaf.weak_type for name, leaf in read.items()} == {"step": True, "strong": False}
    assert same(read, weak)
    given = jnp.ones(2)
    given.delete()
    for wrong, message in (
        (given, r"state\['w'\] was given away"),
        (2**63, r"state\['w'\] must fit into 64"),
    ):
        with pytest.raises(ValueError, match=message):
            orbax_checkpoint.save(tmp_path / "wrong", {"w": wrong})
    with pytest.raises(CheckpointError, match=r"differs from like: \.step: expected int16 \[\]"):
        orbax_checkpoint.restore(path, shapes._replace(step=jnp.int16(0)))
