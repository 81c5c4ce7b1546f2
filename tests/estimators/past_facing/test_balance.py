import jax.numpy as jnp
import pytest

from online_grads.estimators.past_facing.balance import balanced, ratio
from online_grads.numerics import norm


@pytest.mark.parametrize(
    ("over", "under", "expected"), [(4.0, 1.0, 2.0), (0.0, 3.0, 1.0), (3.0, 0.0, 1.0), (0.0, 0.0, 1.0)]
)
def test_a_vanishing_norm_gives_ratio_one_without_epsilon(over, under, expected):
    assert float(ratio(jnp.asarray(over), jnp.asarray(under), 0.0)) == expected


def test_balanced_factors_have_one_norm_and_the_same_product():
    left, right = jnp.arange(1.0, 4.0), [jnp.full((2, 2), 0.1), jnp.ones(1)]
    one, other = balanced(left, right, 0.0)
    assert float(norm(one)) == pytest.approx(float(norm(other)), rel=1e-12)
    assert float(norm(left)) != pytest.approx(float(norm(right)), rel=0.1)
    assert float(one[1] * other[1][0]) == pytest.approx(float(left[1] * right[1][0]), rel=1e-12)
