"""Synthesisers: what predicts the credit to come from features of the present step.

ĉ_t = S(ã_t)          ã_t = [h_t; y_t; 1]
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from online_grads.analysis import Analysis, shapes_of
from online_grads.readouts import Readout


def features_of(found: Analysis) -> Callable:
    """The default features (hidden, y) -> ã = [h; y; 1].

    Raises:
        ValueError: y has entries that are no floating-point numbers.
    """
    strange = [
        leaf.dtype for leaf in jax.tree.leaves(found.y) if not jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    if strange:
        raise ValueError(
            f"the default features take y as numbers, and y has a leaf of dtype {strange[0]}; give "
            "features=, a function (hidden, y) -> [m]"
        )

    def features(hidden, y):
        h, _ = found.flat.split(hidden)
        labels = [leaf.ravel().astype(h.dtype) for leaf in jax.tree.leaves(y)]
        return jnp.concatenate([h, *labels, jnp.ones(1, h.dtype)])

    return features


def size_of(features: Callable, found: Analysis) -> int:
    """m, by shapes alone.

    Raises:
        TypeError: the features are no function.
        ValueError: they fail on (hidden, y), or are no vector of h's dtype.
    """
    if not callable(features):
        raise TypeError(f"features must be a function (hidden, y) -> [m], got {features!r}")
    shape = shapes_of("features fail on (hidden, y)", features, found.hidden, found.y)
    if getattr(shape, "ndim", None) != 1 or shape.dtype != found.flat.dtype:
        raise ValueError(f"features must return a vector [m] of dtype {found.flat.dtype}, got {shape}")
    return shape.shape[0]


def linear(m: int, n: int, dtype) -> Readout:
    """S(ã) = A ã, A starting at zero."""
    return Readout(lambda key: jnp.zeros((n, m), dtype), lambda S, features: S @ features)


def checked(synthesiser, m: int, n: int, dtype) -> Readout:
    """A synthesiser that maps features [m] to a credit [n].

    Raises:
        TypeError: it is no (init, apply) pair.
        ValueError: one of the two fails, or its output is another.
    """
    if not isinstance(synthesiser, tuple) or len(synthesiser) != 2 or not all(map(callable, synthesiser)):
        raise TypeError(f"synthesiser must be a pair of functions (init, apply), got {synthesiser!r}")
    pair = Readout(*synthesiser)
    params = shapes_of(
        "the synthesiser's init fails on a key", pair.init, jax.eval_shape(lambda: jax.random.key(0))
    )
    features = jax.ShapeDtypeStruct((m,), dtype)
    credit = shapes_of(f"the synthesiser fails on features [{m}]", pair.apply, params, features)
    if getattr(credit, "shape", None) != (n,) or credit.dtype != dtype:
        raise ValueError(
            f"the synthesiser must map features [{m}] to a credit like the hidden state, {dtype}[{n}], "
            f"got {credit}"
        )
    return pair
