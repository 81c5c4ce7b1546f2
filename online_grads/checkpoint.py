"""Checkpoints: the state of a run on disk, complete or absent, and back bit by bit.

A checkpoint is a directory with `manifest.json` (names, shapes, dtypes, a checksum of every array, versions,
notes) and `arrays.npz` (plain NumPy, no pickle). It is written into a hidden directory beside, synced to
the disk, and renamed into place: a process killed at any moment leaves the checkpoint complete or absent.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from online_grads.arguments import positive_int
from online_grads.checkpoint_errors import CheckpointError as CheckpointError
from online_grads.checkpoint_errors import cannot_write, reading, why
from online_grads.checkpoint_format import (
    MANIFEST,
    Manifest,
    Unreadable,
    check_folder,
    read_arrays,
    read_manifest,
    write,
)
from online_grads.checkpoint_leaves import Form, differences, form, inside, named, parts, rebuilt
from online_grads.checkpoint_steps import ASIDE, found, name_of, step_of
from online_grads.files import clear_leftovers, make_folder, remove_folder, whole_folder
from online_grads.types import PyTree


def save(path: str | os.PathLike, state: PyTree, *, notes: Mapping[str, Any] | None = None) -> Path:
    """Write a state to a directory, which is complete or absent.

    Args:
        path: the directory; it must not exist, the folders above it are made.
        state: any pytree of JAX arrays (every dtype of JAX), typed keys, NumPy arrays and Python numbers.
            Empty nodes, None among them, hold nothing.
        notes: anything that JSON holds, for `notes`.

    Returns:
        The path.

    Raises:
        TypeError: if a leaf is something else (text, a function), or traced; if the notes are not JSON.
        ValueError: if a leaf was donated, or lies on the devices of several processes.
        CheckpointError: if the path exists, or cannot be written (a full disk, no permission); nothing is
            left then.

    >>> import tempfile, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(Path(folder) / "best", {"w": jnp.ones(2, jnp.bfloat16)}, notes={"loss": 0.5})
    ...     restore(path, {"w": jnp.zeros(2, jnp.bfloat16)}), notes(path)
    ({'w': Array([1, 1], dtype=bfloat16)}, {'loss': 0.5})
    """
    path = Path(path).absolute()
    leaves = named(state, "state")
    try:
        there = path.exists()
    except OSError as error:  # a name that is too long, or a folder above that may not be looked into
        raise cannot_write(path, error) from error
    if there:
        raise CheckpointError(f"{path} exists already", path)
    _write(path, leaves, notes)
    return path


def restore(path: str | os.PathLike, like: PyTree, *, at: str = "") -> PyTree:
    """Read a state that is like a given one: its values are those that were saved, bit by bit.

    Args:
        path: a checkpoint directory.
        like: a pytree with the same names, shapes and dtypes: a state just begun, or its shapes
            (`jax.eval_shape`). Where it has a JAX array or a shape the result has a JAX array, where it
            has a NumPy array or a Python number, that. Where it was put on devices, so is the result.
        at: which part of the saved state is wanted, if not all of it, ".params" of a learner's state say;
            `like` is like that part. The others are not read.

    Returns:
        The state, with the structure of `like`.

    Raises:
        CheckpointError: if there is no intact checkpoint of this format, or it differs from `like`; the
            message says what is wrong or which leaves differ, and names the newest older checkpoint of the
            folder that is intact.
        TypeError: if `like` has a leaf that no checkpoint holds.
        ValueError: if a leaf lies on the devices of several processes, or has 64 bits and JAX's 64-bit mode
            (`jax_enable_x64`) is off.

    >>> import tempfile, jax, jax.numpy as jnp
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_step(folder, 10, {"key": jax.random.key(3), "n": 7})
    ...     state = restore(path, {"key": jax.random.key(0), "n": 0})
    ...     state["n"], bool(state["key"] == jax.random.key(3)), restore(path, 0, at="['n']")
    (7, True, 7)
    """
    path = Path(path).absolute()
    wanted = {f"{at}{name}": leaf for name, leaf in named(like, "like").items()}
    forms = {name: form(f"like{name.removeprefix(at)}", leaf) for name, leaf in wanted.items()}
    manifest = _manifest(path)
    kept = {name: leaf for name, leaf in manifest.leaves.items() if inside(name, at)}
    has = {name: Form(tuple(leaf["shape"]), leaf["dtype"]) for name, leaf in kept.items()}
    if at and not kept:
        raise CheckpointError(f"{path} has nothing at {at!r}; it has {parts(manifest.leaves)}", path)
    if different := differences(forms, has):
        raise CheckpointError(f"{path} differs from like: {different}", path)
    arrays = reading(path, lambda: read_arrays(path, manifest, only=kept))
    leaves = [rebuilt(name, manifest.leaves[name], arrays[name], leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def notes(path: str | os.PathLike) -> dict:
    """The notes that were saved with a checkpoint, as JSON gives them back.

    Raises:
        CheckpointError: as `restore`, for what the manifest tells.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     notes(save(Path(folder) / "best", {"n": 7}, notes={"loss": 0.5, "seeds": (1, 2)}))
    {'loss': 0.5, 'seeds': [1, 2]}
    """
    return _manifest(Path(path).absolute()).notes


def save_step(
    folder: str | os.PathLike,
    step: int,
    state: PyTree,
    *,
    last: int = 3,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write the checkpoint of a step, then remove those of a folder but for the newest.

    What a killed process left half-written is removed too, unless another process writes there now. A
    checkpoint of this step that is there already is replaced, and never missing meanwhile.

    Args:
        folder: where the checkpoints of one run are, made if missing; the disk needs room for `last` + 1.
        step: how far the run is, at least 0; it names the checkpoint.
        state, notes: as for `save`.
        last: how many are kept, those with the highest steps and always this one.

    Returns:
        The path, folder/step_000000001024.

    Raises:
        TypeError, ValueError: as `save`; if `step` or `last` is not a number in its range.
        CheckpointError: if it cannot be written, with `previous`; the older ones are all there then.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [save_step(folder, step, {"n": step}, last=2) for step in (10, 20, 30)]
    ...     latest(folder).name, [path.exists() for path in paths]
    ('step_000000000030', [False, True, True])
    """
    positive_int("last", last)
    folder = Path(folder).absolute()
    path = folder / name_of(positive_int("step", step, least=0))
    leaves = named(state, "state")
    aside = path.with_name(path.name + ASIDE)
    try:
        make_folder(folder)
        clear_leftovers(folder)
        if path.is_dir() and aside.is_dir():
            remove_folder(aside)
    except OSError as error:
        raise cannot_write(path, error) from error
    _write(path, leaves, notes, aside)
    try:
        outdated = [old for old in found(folder)[:-last] if old != path]
        for old in [aside] * aside.is_dir() + outdated:
            remove_folder(old)
    except OSError as error:
        raise CheckpointError(
            f"{path} is saved, but no older one can be removed: {why(error)}", path
        ) from error
    return path


def latest(folder: str | os.PathLike) -> Path | None:
    """The newest complete checkpoint of a folder, by its step; None if there is none, or no such folder.

    Its arrays are not read: `restore` does, and names an older one if they are damaged.

    Raises:
        CheckpointError: if the folder cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [save_step(folder, step, {"n": step}) for step in (10, 20)]
    ...     latest(folder).name, latest(Path(folder) / "other")
    ('step_000000000020', None)
    """
    folder = Path(folder).absolute()
    try:
        return next(reversed(found(folder)), None)
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {why(error)}", folder) from error


def steps(folder: str | os.PathLike) -> int:
    """How far the newest complete checkpoint of a folder is: its step, as `save_step` was told it; 0 if none.

    What goes on with a run begins there: `json_lines("log.jsonl", resume_at=steps(folder))`.

    Raises:
        CheckpointError: if the folder cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     before = steps(folder)
    ...     path = save_step(folder, 1024, {"n": 7})
    ...     before, steps(folder)
    (0, 1024)
    """
    newest = latest(folder)
    return 0 if newest is None else step_of(newest)


def _write(path: Path, leaves, notes, aside: Path | None = None) -> None:
    try:
        make_folder(path.parent)
        with whole_folder(path, aside=aside) as beside:
            write(beside, leaves, notes or {})
    except OSError as error:
        raise cannot_write(path, error) from error


def _manifest(path: Path) -> Manifest:
    def read() -> Manifest:
        check_folder(path)
        if not (path / MANIFEST).exists():
            inside = next(reversed(found(path)), None)
            if inside:
                raise Unreadable(f"is a folder of checkpoints: its latest is {inside}")
            raise Unreadable(f"is no checkpoint: it has no {MANIFEST}")
        return read_manifest(path)

    return reading(path, read)
