"""A block of steps, linearised: where a shorter way is taken, that it leads to the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads.analysis import analyse
from online_grads.linearize import Segment, Weights
from tests.models import MODELS, stream

TIED = ["normalised"]  # a weight that is used twice counts twice in the norm


def segment_of(name, k):
    model = MODELS[name]()
    found = analyse(model)
    params, hidden = model.init(jax.random.key(0))
    structure = Weights(found, dense=True)
    weights = structure.effective(found.theta(params))
    h, rest = found.flat.split(hidden)
    return Segment(structure, weights, h, rest, stream(model, k)[0], k)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("k", [1, 3])
def test_the_norm_that_comes_with_a_pull(name, k):
    """Of one step it is read off the factors, of several off the gradients."""

    @jax.jit
    def both(h_scale):
        segment = segment_of(name, k)
        credit = h_scale * jnp.cos(jnp.arange(segment.h.shape[1], dtype=segment.h.dtype))
        plain, _ = segment.pull_end(credit)
        return plain, *segment.pull_end_with_norm(credit)

    plain, grads, norm = both(2.0)
    for one, other in zip(plain, grads, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-11, atol=1e-13)
    expected = np.sqrt(sum(np.sum(np.square(grad)) for grad in plain))
    assert expected > 1e-3
    assert np.isclose(norm, expected, rtol=1e-10) == (k > 1 or name not in TIED)
