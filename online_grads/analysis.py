"""A model, checked once at construction and laid flat: what every estimator builds on.

Everything here works from shapes alone. What does not fit is refused here, before anything
compiles, in words that name the leaf, what was expected and what came.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads import jaxprs
from online_grads.flat import Flat, flatten
from online_grads.leaves import is_key
from online_grads.types import Array, Model, PyTree


class Analysis(NamedTuple):
    """A model's shapes, and its two functions on parameter leaves and a flat hidden state."""

    model: Model
    params: PyTree  # shapes
    hidden: PyTree  # shapes
    x: PyTree  # shapes of one step
    y: PyTree  # shapes of one step
    flat: Flat  # layout of the hidden state
    moving: list[int]  # numbers of the parameter leaves that the transition uses
    reading: list[int]  # numbers of the parameter leaves that the loss or its outputs use

    @property
    def names(self) -> list[str]:
        """The name of every parameter leaf, as in params['cell']['bias']."""
        return [_name("params", path) for path, _ in jax.tree.leaves_with_path(self.params)]

    def theta(self, params: PyTree) -> list[Array]:
        """The parameter leaves that the transition uses."""
        leaves = jax.tree.leaves(params)
        return [leaves[number] for number in self.moving]

    def readout(self, params: PyTree) -> list[Array]:
        """The parameter leaves that the loss uses."""
        leaves = jax.tree.leaves(params)
        return [leaves[number] for number in self.reading]

    def transition(self, theta: Sequence[Array], h: Array, rest: list, x: PyTree):
        """(h_t [n], rest) from the transition's leaves, h_{t-1} [n], the other leaves and x_t."""
        params = self._params(self.moving, theta)
        return self.flat.split(self.model.transition(params, self.flat.join(h, rest), x))

    def loss(self, readout: Sequence[Array], h: Array, rest: list, y: PyTree):
        """(ℓ_t [], out_t) from the loss's leaves, h_t [n], the other leaves and y_t."""
        return self.model.loss(self._params(self.reading, readout), self.flat.join(h, rest), y)

    def resets(self, xs: PyTree, k: int) -> Array:
        """[k] bool, which steps of a segment begin anew."""
        return jnp.zeros(k, bool) if self.model.reset is None else jax.vmap(self.model.reset)(xs)

    def gradient(self, theta: Sequence[Array], readout: Sequence[Array]) -> PyTree:
        """Gradients like params from those of the transition's and of the loss's leaves."""
        shapes, treedef = jax.tree.flatten(self.params)
        grads: list = [None] * len(shapes)
        for numbers, parts in ((self.moving, theta), (self.reading, readout)):
            for number, part in zip(numbers, parts, strict=True):
                grads[number] = part if grads[number] is None else grads[number] + part
        filled = [jnp.zeros(s.shape, s.dtype) if g is None else g for g, s in zip(grads, shapes, strict=True)]
        return jax.tree.unflatten(treedef, filled)

    def check_start(self, params: PyTree, hidden: PyTree, key: Array) -> None:
        """Refuse parameters, a hidden state or a key that `init` cannot take."""
        _same("params", self.params, params)
        _same("hidden", self.hidden, hidden)
        check_key(key)

    def check_segment(self, xs: PyTree, ys: PyTree) -> int:
        """The number of steps k of a segment; refuses one that does not fit the model."""
        leaves = jax.tree.leaves((xs, ys))
        scalars = [leaf for leaf in leaves if jnp.ndim(leaf) == 0]
        if scalars or not leaves:
            raise ValueError("xs and ys need a leading time axis [k, ...] on every leaf")
        k = jnp.shape(leaves[0])[0]
        longer = lambda tree: jax.tree.map(lambda s: jax.ShapeDtypeStruct((k, *s.shape), s.dtype), tree)
        _same("xs", longer(self.x), xs)
        _same("ys", longer(self.y), ys)
        if k < 1:
            raise ValueError("a segment needs at least one step, got 0")
        return k

    def _params(self, numbers, leaves):
        shapes, treedef = jax.tree.flatten(self.params)
        # the other leaves are not read
        full = [jnp.zeros(s.shape, s.dtype) if i not in numbers else None for i, s in enumerate(shapes)]
        for number, leaf in zip(numbers, leaves, strict=True):
            full[number] = leaf
        return jax.tree.unflatten(treedef, full)


def analyse(model: Model, *, allow_unused: bool = False) -> Analysis:
    """Check a model and lay it flat.

    Args:
        model: the model.
        allow_unused: accept parameters that neither the transition nor the loss uses; their
            gradient is zero.

    Raises:
        TypeError: if a parameter is not a real floating-point array, or a pair is none.
        ValueError: if params is empty, a function fails on the example's shapes, the hidden state
            changes structure, shape or dtype, the loss is not scalar, or a parameter is unused.
    """
    if not isinstance(model, Model):
        raise TypeError(f"expected an online_grads.Model, got {type(model).__name__}")
    start = jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0)))
    params, hidden = _pair("model.init must return a pair (params, hidden)", start)
    example = _pair("model.example must be a pair (x, y) of one step", model.example)
    x, y = jax.eval_shape(lambda example: example, example)
    _check_params(params)
    moved = _shapes("transition", model.transition, params, hidden, "x", x)
    _same("the hidden state that model.transition returns", hidden, moved)
    result = _shapes("loss", model.loss, params, hidden, "y", y)
    loss, _ = _pair("model.loss must return a pair (scalar loss, outputs)", result)
    if getattr(loss, "shape", None) != () or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise ValueError(f"model.loss must return a floating-point scalar loss, got {_show(loss)}")
    moving = used(model.transition, params, hidden, x)
    reading = used(model.loss, params, hidden, y)
    learning = {*moving, *used(lambda *args: model.loss(*args)[0], params, hidden, y)}
    found = Analysis(model, params, hidden, x, y, flatten(hidden), moving, reading)
    unused = [name for i, name in enumerate(found.names) if i not in learning]
    if unused and not allow_unused:
        raise ValueError(
            f"neither model.transition nor model.loss uses {', '.join(unused)}; "
            "remove it from params, or pass allow_unused=True to give it a zero gradient"
        )
    return found


def check_key(key: Array) -> None:
    """Refuse anything but a typed PRNG key."""
    if not is_key(key):
        got = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else type(key).__name__
        raise TypeError(f"key must be a typed key as jax.random.key makes it, got {got}")
    if key.shape != ():
        raise ValueError(f"key must be a single key, got shape {key.shape}; vmap over several")


def _pair(expected, value) -> tuple:
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"{expected}, got {_show(value)}")
    return value


def _check_params(params):
    leaves = jax.tree.leaves_with_path(params)
    if not leaves:
        raise ValueError("model.init returns params without any array: there is nothing to learn")
    for path, leaf in leaves:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{_name('params', path)} has dtype {leaf.dtype}; parameters must be real floating-point "
                "arrays (keep counters and keys in hidden, a complex number as two real leaves)"
            )


def shapes_of(failure: str, function: Callable, *args):
    """The shapes of a user's function; what it raises becomes a ValueError that begins with `failure`."""
    try:
        return jax.eval_shape(function, *args)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{failure}: {error}") from error


def _shapes(name, function, params, hidden, third, value):
    given = f"params {_show(params)}, hidden {_show(hidden)}, {third} {_show(value)}"
    return shapes_of(f"model.{name} fails on {given}", function, params, hidden, value)


def used(function: Callable, params: PyTree, *others: PyTree) -> list[int]:
    """The numbers of the leaves of params that `function(params, *others)` depends on."""
    leaves, treedef = jax.tree.flatten((params, *others))
    flat = lambda *leaves: jax.tree.leaves(function(*jax.tree.unflatten(treedef, leaves)))
    live = jaxprs.live_inputs(jaxprs.trace(flat, *leaves))
    return [number for number in range(len(jax.tree.leaves(params))) if live[number]]


def _same(name, expected, got):
    want, have = jax.tree.structure(expected), jax.tree.structure(got)
    if want != have:
        leaves = lambda tree: {_name(name, path) for path, _ in jax.tree.leaves_with_path(tree)}
        missing, more = (leaves(expected) - leaves(got), leaves(got) - leaves(expected))
        differing = (("without", missing), ("with", more))
        said = "".join(f", {word} {', '.join(sorted(of))}" for word, of in differing if of)
        raise ValueError(f"{name}: expected the structure {want}, got {have}{said}")
    got = jax.eval_shape(lambda tree: tree, got)
    pairs = zip(jax.tree.leaves_with_path(expected), jax.tree.leaves(got), strict=True)
    for (path, one), other in pairs:
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            raise ValueError(f"{_name(name, path)}: expected {_show(one)}, got {_show(other)}")


def _name(root, path) -> str:
    return root + jax.tree_util.keystr(path)


def _show(tree) -> str:
    show = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}" if hasattr(leaf, "dtype") else repr(leaf)
    return str(jax.tree.map(show, tree)).replace("'", "")
