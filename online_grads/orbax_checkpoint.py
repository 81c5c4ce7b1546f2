"""Checkpoints with orbax, for those who use it everywhere: `pip install online-grads[orbax]`.

Orbax knows no typed keys, no empty arrays and not every number. `plain` gives a state that it can hold, for
any of its managers; `back` undoes it. `save` and `restore` do both for one checkpoint: which ones are kept is
up to you or to a manager, and `run(checkpoints=)` saves with `online_grads.checkpoint`, not with these.
"""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.checkpoint_errors import CheckpointError, reading
from online_grads.checkpoint_format import MANIFEST, Unreadable, check_folder
from online_grads.checkpoint_leaves import (
    SCALARS,
    Form,
    as_numpy,
    check_held,
    differences,
    form,
    implementation,
    is_weak,
    named,
    weakened,
)
from online_grads.leaves import is_key
from online_grads.types import PyTree

try:
    import orbax.checkpoint as orbax
except ImportError as error:
    raise ImportError("orbax is missing: pip install online-grads[orbax]") from error


def save(path: str | os.PathLike, state: PyTree) -> Path:
    """Write a state with orbax, which makes the directory complete or absent.

    Args:
        path: the directory; it must not exist.
        state: as for `checkpoint.save`; parts may be on the devices of other processes.

    Returns:
        The path.

    Raises:
        TypeError: if a leaf is no array, typed key or Python number.
        ValueError: if the path exists, a leaf was donated, or is an integer of over 64 bits.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(Path(folder) / "best", {"w": jnp.ones(2, jnp.bfloat16), "key": jax.random.key(3)})
    ...     restore(path, {"w": jnp.zeros(2, jnp.bfloat16), "key": jax.random.key(0)})["w"]
    Array([1, 1], dtype=bfloat16)
    """
    path = Path(path).absolute()
    forms = {
        name: (*form(f"state{name}", leaf), is_weak(leaf)) for name, leaf in named(state, "state").items()
    }
    with _checkpointer() as checkpointer:
        checkpointer.save(
            path,
            orbax.args.Composite(
                state=orbax.args.StandardSave(plain(state)), forms=orbax.args.JsonSave(forms)
            ),
        )
    return path


def restore(path: str | os.PathLike, like: PyTree) -> PyTree:
    """Read a state that is like a given one, as `checkpoint.restore` does.

    Raises:
        CheckpointError: if it is not from `save`, or differs from `like`; it names the leaves. Other errors
            are those of orbax.
    """
    path = Path(path).absolute()
    forms = {name: form(f"like{name}", leaf) for name, leaf in named(like, "like").items()}
    reading(path, lambda: _check_ours(path))
    with _checkpointer() as checkpointer:
        saved = checkpointer.restore(path, orbax.args.Composite(forms=orbax.args.JsonRestore())).forms
        has = {name: Form(tuple(shape), dtype) for name, (shape, dtype, _) in saved.items()}
        if different := differences(forms, has):
            raise CheckpointError(f"{path} differs from like: {different}", path)
        wanted = orbax.args.Composite(state=orbax.args.StandardRestore(plain(like)))
        state = back(checkpointer.restore(path, wanted).state, like)
    leaves = zip(jax.tree.leaves(state), (saved[name][2] for name in forms), strict=True)
    return jax.tree.unflatten(
        jax.tree.structure(like), [_weak(leaf) if weak else leaf for leaf, weak in leaves]
    )


def plain(state: PyTree) -> PyTree:
    """A state, or its shapes, as orbax holds it: keys as their data, numbers as arrays, no array empty.

    Raises:
        ValueError: if a leaf was donated, or is an integer of over 64 bits.

    >>> held = plain({"key": jax.random.key(3), "n": 7, "none": jnp.zeros(0)})
    >>> held["key"], held["n"], held["none"].shape
    (Array([0, 3], dtype=uint32), array(7), (1,))
    """
    return jax.tree_util.tree_map_with_path(_plain, state)


def back(state: PyTree, like: PyTree) -> PyTree:
    """What `plain` made of a state, as the state that it was; `like` is one of its kind, or its shapes.

    Weak types, which orbax does not hold, are no longer there; `restore` gives them back.

    >>> state = {"key": jax.random.key(3), "n": 7}
    >>> back(plain(state), {"key": jax.random.key(0), "n": 0}) == state
    True
    """
    return jax.tree.map(_back, like, state)


def _plain(path, leaf):
    name = f"state{jax.tree_util.keystr(path)}"
    check_held(name, leaf)
    if is_key(leaf):
        shape = isinstance(leaf, jax.ShapeDtypeStruct)
        return jax.eval_shape(jax.random.key_data, leaf) if shape else jax.random.key_data(leaf)
    if isinstance(leaf, jax.Array | jax.ShapeDtypeStruct | np.ndarray):
        return leaf if leaf.size else np.zeros(1, leaf.dtype)
    return as_numpy(name, leaf)


def _back(like, leaf):
    if is_key(like):
        return jax.random.wrap_key_data(leaf, impl=implementation(like))
    if isinstance(like, jax.Array | jax.ShapeDtypeStruct | np.ndarray):
        zeros = np.zeros if isinstance(like, np.ndarray) else jnp.zeros
        return leaf if like.size else zeros(like.shape, like.dtype)
    return leaf.item() if type(like) in SCALARS else leaf[()]


def _weak(leaf):
    """A restored array of a weak type, where it was put."""
    if not isinstance(leaf, jax.Array):
        return leaf
    return jax.jit(weakened, out_shardings=leaf.sharding if leaf.committed else None)(leaf)


def _check_ours(path: Path) -> None:
    check_folder(path)
    if (path / MANIFEST).is_file():
        raise Unreadable("is a checkpoint of online_grads.checkpoint: use its restore")
    if not (path / "forms").is_dir():
        raise Unreadable("is no checkpoint of online_grads.orbax_checkpoint: it has no item forms")


def _checkpointer() -> "orbax.Checkpointer":
    return orbax.Checkpointer(orbax.CompositeCheckpointHandler())
