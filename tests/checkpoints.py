"""What tests of checkpoints share: a state, and whether two are the same bit by bit."""

import jax
import numpy as np

PYTHON = (bool, int, float, complex)


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


def numbers(step):
    """A state of which the step tells the content."""
    return {"n": np.arange(1000) * 7 + step, "step": step}
