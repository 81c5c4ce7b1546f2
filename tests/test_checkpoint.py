"""Checkpoints: complete or absent, back bit by bit, and clear about what is wrong."""

import functools
import json
import os
import pickle
import shutil
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
from tests.checkpoints import numbers, same


class Pair(NamedTuple):
    first: object
    second: object


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


def test_a_part_comes_back_alone(tmp_path):
    state = learning()
    path = save(tmp_path / "state", state)
    assert same(restore(path, jax.eval_shape(lambda: state.params), at=".params"), state.params)
    assert same(restore(path, state.step, at=".step"), state.step)
    for at, message in (
        (".param", r"has nothing at '\.param'; it has \.params, "),
        ("", "differs from like"),
    ):
        with pytest.raises(CheckpointError, match=message):
            restore(path, state.params, at=at)
    with pytest.raises(CheckpointError, match=r"like: \.params\['gone'\] is missing from the checkpoint; "):
        restore(path, {"gone": 1}, at=".params")


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


def test_an_error_survives_a_process_pool(tmp_path):
    error = pickle.loads(pickle.dumps(CheckpointError("gone", tmp_path, tmp_path / "old")))
    assert (str(error), error.path, error.previous) == ("gone", tmp_path, tmp_path / "old")
