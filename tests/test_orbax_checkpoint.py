"""Checkpoints with orbax hold the same, and what is none of them is named."""

import jax
import jax.numpy as jnp
import pytest

from online_grads.checkpoint import CheckpointError, save
from tests.checkpoints import same
from tests.test_checkpoint import every_kind, learning

orbax_checkpoint = pytest.importorskip("online_grads.orbax_checkpoint")


def test_orbax_holds_the_same(tmp_path):
    kinds = ("bfloat16", "nan", "empty", "keys", "numpy", "python", "nothing")
    state = {kind: every_kind()[kind] for kind in kinds}
    assert same(orbax_checkpoint.restore(orbax_checkpoint.save(tmp_path / "state", state), state), state)
    learned = learning()
    shapes = jax.eval_shape(lambda: learned)
    path = orbax_checkpoint.save(tmp_path / "learner", learned)
    assert same(orbax_checkpoint.restore(path, shapes), learned)
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
    own = save(tmp_path / "own", weak)
    for foreign, message in (
        (tmp_path / "none", "does not exist"),
        (path / "state", "is no checkpoint of online_grads.orbax_checkpoint: it has no item forms"),
        (own, r"is a checkpoint of online_grads\.checkpoint: use its restore"),
    ):
        with pytest.raises(CheckpointError, match=message):
            orbax_checkpoint.restore(foreign, weak)
