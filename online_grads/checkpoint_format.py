"""What a checkpoint directory holds: `manifest.json` and `arrays.npz`, readable without this library.

The manifest names every leaf of the saved tree, its shape, its dtype and the SHA-256 of its bytes
(row-major, little-endian); it ends with the SHA-256 of itself, taken as JSON with sorted keys and no spaces.
Leaf number i is the array `i` of the archive, an uncompressed NumPy file without pickle. Dtypes
that NumPy lacks are there as unsigned integers of their size, a typed key as its data.
"""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np

FORMAT, VERSION = "online-grads checkpoint", 1
MANIFEST, ARRAYS = "manifest.json", "arrays.npz"
PLAIN = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 "
    "float16 float32 float64 complex64 complex128".split()
)
SCALARS = {bool: "bool", int: "int64", float: "float64", complex: "complex128"}


class Unreadable(Exception):
    """A directory that is no intact checkpoint; it says why."""


class Form(NamedTuple):
    """Shape and dtype of a leaf; the dtype of a typed key is key<its implementation>."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


class Manifest(NamedTuple):
    """What a checkpoint says about itself."""

    leaves: dict[str, dict]  # name -> shape, dtype, weak, sha256; in the order of the archive
    notes: dict


def named(tree, called: str) -> dict[str, Any]:
    """The leaves of a tree by their names.

    Raises:
        ValueError: if two have one name.

    >>> list(named({"b": 0, "w": [1, None, 2]}, "state"))
    ["['b']", "['w'][0]", "['w'][2]"]
    """
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = jax.tree_util.keystr(path)
        if name in leaves:
            raise ValueError(f"{called}: two leaves are named {name}")
        leaves[name] = leaf
    return leaves


def form(name: str, leaf) -> Form:
    """Shape and dtype of a leaf of a state, or of one that stands for it.

    Raises:
        TypeError: if it is no array, typed key or Python number, or has no bytes of its own.

    >>> print(form(".w", np.zeros(3)), form(".n", 1), form(".key", jax.random.key(0)), sep=", ")
    float64 [3], Python int [], key<threefry2x32> []
    """
    if isinstance(leaf, jax.core.Tracer):
        raise TypeError(
            f"{name} is being traced: a checkpoint is made of values, outside of jit, grad and vmap"
        )
    if type(leaf) in SCALARS:
        return Form((), f"Python {type(leaf).__name__}")
    arrays = (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic)
    if not isinstance(leaf, arrays) or isinstance(leaf, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an array, a typed key or a Python number, got {leaf!r}")
    if is_key(leaf):
        return Form(tuple(leaf.shape), f"key<{_implementation(leaf)}>")
    dtype = np.dtype(leaf.dtype)
    if dtype.name not in PLAIN and not hasattr(ml_dtypes, dtype.name):
        raise TypeError(f"{name}: {dtype} cannot be saved")
    return Form(tuple(leaf.shape), dtype.name)


def is_key(leaf) -> bool:
    """Whether it is an array of typed keys."""
    return hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def write(folder: Path, leaves: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Write the two files of a checkpoint into a folder that exists.

    Raises:
        TypeError, ValueError: if a leaf cannot be saved, or the notes are not JSON. Nothing is written then.
        OSError: if a file cannot be written.
    """
    forms = {name: form(f"state{name}", leaf) for name, leaf in leaves.items()}
    raw = {name: _raw(f"state{name}", leaf) for name, leaf in leaves.items()}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "written_by": {"online-grads": version("online-grads"), "jax": jax.__version__},
        "notes": dict(notes),
        "leaves": [
            {
                "name": name,
                "shape": list(shape),
                "dtype": dtype,
                "weak": bool(getattr(leaves[name], "weak_type", False)),
                "sha256": _digest(raw[name]),
            }
            for name, (shape, dtype) in forms.items()
        ],
    }
    try:
        content["sha256"] = _digest(_canonical(content))
        text = json.dumps(content, indent=1, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"notes must be JSON: {error}") from None
    with zipfile.ZipFile(folder / ARRAYS, "x") as archive:
        for number, array in enumerate(raw.values()):
            with archive.open(f"{number}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, array, allow_pickle=False)
    (folder / MANIFEST).write_text(text, encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """What the checkpoint in a folder says about itself.

    Raises:
        Unreadable: if it is no checkpoint, one of a newer format, or its manifest is damaged.
        OSError: if the manifest cannot be read.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except ValueError as error:
        raise Unreadable(f"is damaged: {MANIFEST} is no JSON ({error})") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise Unreadable(f"is not a checkpoint of online-grads: its {MANIFEST} is of something else")
    if content.get("version") != VERSION:
        raise Unreadable(
            f"has format {content.get('version')!r} (written by {content.get('written_by')!r}); "
            f"this version of online-grads reads format {VERSION}"
        )
    checksum = content.pop("sha256", None)
    if checksum != _digest(_canonical(content)):
        raise Unreadable(f"is damaged: the checksum of {MANIFEST} is another")
    return Manifest({leaf.pop("name"): leaf for leaf in content["leaves"]}, content["notes"])


def read_arrays(folder: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint as they are stored, by name, every checksum compared.

    Raises:
        Unreadable: if one is missing or not what was saved.
        OSError: if the archive cannot be read.
    """
    raw = {}
    with open(folder / ARRAYS, "rb") as file:
        try:
            archive = np.load(file, allow_pickle=False)
        except Exception as error:  # a damaged archive raises nearly anything
            raise Unreadable(f"is damaged or truncated: {ARRAYS} cannot be read ({error})") from error
        for number, (name, leaf) in enumerate(manifest.leaves.items()):
            try:
                array = archive[str(number)]
            except Exception as error:
                raise Unreadable(f"is damaged: {name} cannot be read from {ARRAYS} ({error})") from error
            if _digest(array) != leaf["sha256"]:
                raise Unreadable(f"is damaged: the checksum of {name} is another")
            raw[name] = array
    return raw


def rebuilt(name: str, leaf: Mapping[str, Any], raw: np.ndarray, like):
    """A stored array as the leaf that `like` asks for, whose form it has.

    Raises:
        ValueError: if JAX cannot hold it as it is configured, or on the devices of `like`.
    """
    if type(like) in SCALARS:
        return raw.item()
    if is_key(like):
        return _placed(
            name, jax.random.wrap_key_data(jax.numpy.asarray(raw), impl=_implementation(like)), like
        )
    dtype = np.dtype(like.dtype)
    array = raw.astype(dtype, copy=False) if dtype.name in PLAIN else raw.view(dtype)
    if isinstance(like, np.generic):
        return array[()]
    if isinstance(like, np.ndarray):
        return array
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{name} is {dtype}, which needs jax.config.update('jax_enable_x64', True)")
    return _placed(name, _weak(array) if leaf["weak"] else jax.numpy.asarray(array), like)


def _weak(array: np.ndarray):
    """An array of a weak type, as JAX makes of Python numbers: it promotes as it did when it was saved."""
    number = jax.numpy.asarray(array.dtype.type(0).item())
    if number.dtype != array.dtype:
        return jax.numpy.asarray(array)
    return jax.numpy.broadcast_to(number, array.shape).at[...].set(array)


def _placed(name: str, array, like):
    """On the devices where `like` is, if somebody put it there."""
    if like.sharding is None or (isinstance(like, jax.Array) and not like.committed):
        return array
    if not like.sharding.is_fully_addressable:
        raise ValueError(f"like{name} has parts on the devices of other processes, which is not supported")
    return jax.device_put(array, like.sharding)


def _implementation(key) -> str:
    """The name of the generator of typed keys, of which only the shape may be known."""
    names = []
    jax.eval_shape(lambda key: names.append(str(jax.random.key_impl(key))), key)
    return names[0]


def _raw(name: str, leaf) -> np.ndarray:
    """The array that is stored: a dtype that NumPy itself has, row-major, little-endian."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise TypeError(f"{name} is a shape without values")
    if isinstance(leaf, jax.Array):
        if leaf.is_deleted():
            raise ValueError(
                f"{name} was given away (donated) to a compiled function: save what that returned"
            )
        if not leaf.is_fully_addressable:
            raise ValueError(f"{name} has parts on the devices of other processes, which is not supported")
    if is_key(leaf):
        leaf = jax.random.key_data(leaf)
    try:
        array = np.asarray(leaf, SCALARS.get(type(leaf)), order="C")
    except OverflowError:
        raise ValueError(f"{name} must fit into 64 bits, got {leaf}") from None
    if array.dtype.name not in PLAIN:
        return array.view(f"u{array.dtype.itemsize}")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _digest(content: np.ndarray | bytes) -> str:
    return hashlib.sha256(content.data if isinstance(content, np.ndarray) else content).hexdigest()


def _canonical(content: dict) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
