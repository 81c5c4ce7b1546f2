"""A block of steps, linearised: where a shorter way is taken, that it leads to the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads.analysis import analyse
from online_grads.linearize import Segment, Weights
from tests.models import MODELS
from tests.strange import random_like

TIED = ["normalised"]  # a weight that is used twice counts twice in the norm


def segment_of(found, params, hidden, xs):
    structure = Weights(found, dense=True)
    weights = structure.effective(found.theta(params))
    h, rest = found.flat.split(hidden)
    return Segment(structure, weights, h, rest, xs, len(jax.tree.leaves(xs)[0]))


@pytest.mark.parametrize("name", MODELS)
def test_the_norm_that_comes_with_a_pull(name):
    """Of one step it is read off the factors, of several off the gradients."""
    found = analyse(MODELS[name]())

    def both(params, hidden, xs):
        segment = segment_of(found, params, hidden, xs)
        credit = 2 * jnp.cos(jnp.arange(segment.h.shape[1], dtype=segment.h.dtype))
        plain, _ = segment.pull_end(credit)
        return plain, *segment.pull_end_with_norm(credit)

    xs = jax.tree.map(lambda s: jax.ShapeDtypeStruct((3, *s.shape), s.dtype), found.x)
    params, hidden, xs = random_like((found.params, found.hidden, xs), seed=0)
    first = jax.tree.map(lambda rows: rows[:1], xs)
    each = jax.jit(lambda *given: [both(*given, part) for part in (first, xs)])(params, hidden)
    for k, (plain, grads, norm) in zip((1, 3), each, strict=True):
        for one, other in zip(plain, grads, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)
        expected = np.sqrt(sum(np.sum(np.square(grad)) for grad in plain))
        assert expected > 1e-3
        assert np.isclose(norm, expected, rtol=1e-10) == (k > 1 or name not in TIED)
