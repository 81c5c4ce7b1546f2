"""The leaves of a state as a checkpoint stores them: plain NumPy arrays, and back."""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from online_grads.leaves import is_key

PLAIN = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 "
    "float16 float32 float64 complex64 complex128".split()
)
SHOWN = 4  # differing leaves that an error names
SCALARS = {bool: "bool", int: "int64", float: "float64", complex: "complex128"}


class Form(NamedTuple):
    """Shape and dtype of a leaf; the dtype of a typed key is key<its implementation>."""

    shape: tuple[int, ...]
    dtype: str

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


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
        return Form(tuple(leaf.shape), f"key<{implementation(leaf)}>")
    dtype = np.dtype(leaf.dtype)
    if dtype.name not in PLAIN and not hasattr(ml_dtypes, dtype.name):
        raise TypeError(f"{name}: {dtype} cannot be saved")
    return Form(tuple(leaf.shape), dtype.name)


def differences(wanted: Mapping[str, Form], has: Mapping[str, Form]) -> str:
    """What a checkpoint has in another way than what is wanted, leaf by leaf; nothing if they agree.

    >>> one = Form((), "float32")
    >>> differences({".w": one, ".b": one}, {".w": Form((2,), "int8")})
    '.b is missing from the checkpoint; .w: expected float32 [], the checkpoint has int8 [2]'
    """
    found = [
        *(f"{name} is missing from the checkpoint" for name in wanted if name not in has),
        *(f"{name} is in the checkpoint only" for name in has if name not in wanted),
        *(
            f"{name}: expected {wanted[name]}, the checkpoint has {has[name]}"
            for name in wanted
            if has.get(name, wanted[name]) != wanted[name]
        ),
    ]
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return "; ".join(found[:SHOWN] + more)


def inside(name: str, at: str) -> bool:
    """Whether a leaf is the part of a state that `at` names, or in it.

    >>> [inside(name, ".w") for name in (".w", ".w[0]", ".w.b", ".wide")]
    [True, True, True, False]
    """
    return name.startswith(at) and (not at or name[len(at) :][:1] in ("", ".", "["))


def parts(names: Iterable[str]) -> str:
    """The outermost parts of the state that has these leaves.

    >>> parts([".params['w']", ".params['b']", ".step"]), parts([""])
    ('.params, .step', 'a single leaf')
    """
    found = re.findall(r"^(\.\w+|\[[^]]*\])", "\n".join(names), re.MULTILINE)
    return ", ".join(dict.fromkeys(found)) or "a single leaf"


def as_stored(name: str, leaf) -> np.ndarray:
    """A leaf as an array of a dtype that NumPy itself has, row-major and little-endian.

    Raises:
        TypeError: if it is a shape without values.
        ValueError: if it was donated, is on devices of several processes, or is an integer of over 64 bits.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        raise TypeError(f"{name} is a shape without values")
    check_held(name, leaf)
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise ValueError(f"{name} has parts on the devices of other processes, which is not supported")
    array = as_numpy(name, jax.random.key_data(leaf) if is_key(leaf) else leaf)
    if array.dtype.name not in PLAIN:
        return array.view(f"u{array.dtype.itemsize}")
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def check_held(name: str, leaf) -> None:
    """Refuse an array that is gone.

    Raises:
        ValueError: if it was donated.
    """
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        raise ValueError(f"{name} was given away (donated) to a compiled function: save what that returned")


def as_numpy(name: str, leaf) -> np.ndarray:
    """A row-major array; of Python numbers, of 64 bits.

    Raises:
        ValueError: if it is an integer of more.
    """
    try:
        return np.asarray(leaf, SCALARS.get(type(leaf)), order="C")
    except OverflowError:
        raise ValueError(f"{name} must fit into 64 bits, got {leaf}") from None


def is_weak(leaf) -> bool:
    """Whether it promotes as Python numbers do."""
    return bool(getattr(leaf, "weak_type", False))


def rebuilt(name: str, leaf: Mapping[str, Any], raw: np.ndarray, like):
    """A stored array as the leaf that `like` asks for, whose form it has.

    Raises:
        ValueError: if JAX cannot hold it as it is configured, or on the devices of `like`.
    """
    if type(like) in SCALARS:
        return raw.item()
    if is_key(like):
        return _placed(name, jax.random.wrap_key_data(jnp.asarray(raw), impl=implementation(like)), like)
    dtype = np.dtype(like.dtype)
    array = raw.astype(dtype, copy=False) if dtype.name in PLAIN else raw.view(dtype)
    if isinstance(like, np.generic):
        return array[()]
    if isinstance(like, np.ndarray):
        return array
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise ValueError(f"{name} is {dtype}, which needs jax.config.update('jax_enable_x64', True)")
    return _placed(name, weakened(array) if leaf["weak"] else jnp.asarray(array), like)


def weakened(array):
    """An array of a weak type, as JAX makes of Python numbers: it promotes as it did when it was saved."""
    number = jnp.asarray(array.dtype.type(0).item())
    if number.dtype != array.dtype:
        return jnp.asarray(array)
    return jnp.broadcast_to(number, array.shape).at[...].set(array)


def _placed(name: str, array, like):
    """On the devices where `like` is, if somebody put it there."""
    if like.sharding is None or (isinstance(like, jax.Array) and not like.committed):
        return array
    if not like.sharding.is_fully_addressable:
        raise ValueError(f"like{name} has parts on the devices of other processes, which is not supported")
    return jax.device_put(array, like.sharding)


def implementation(key) -> str:
    """The name of the generator of typed keys, of which only the shape may be known."""
    names = []
    jax.eval_shape(lambda key: names.append(str(jax.random.key_impl(key))), key)
    return names[0]
