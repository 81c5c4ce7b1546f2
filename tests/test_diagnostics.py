"""What is said of estimates: their quality, the decrease of the loss, alignments, credit."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import Model
from online_grads.diagnostics import alignments, credit, decrease, leaf_slices, quality
from online_grads.flat import flatten
from tests import models


def test_quality_of_one_case():
    e = np.array([[3.0, 4.0]])
    same = quality(e[:, None], e)
    assert [float(value[0]) for value in same[:1] + same[2:]] == [1, 0, 0, 0, math.inf, 1]
    assert math.isnan(same.alignment_se[0])
    # mean (5, 0): off by (2, -4); variance (1 + 9)/1 per two draws, each entry's mean has half of it
    g = np.array([[[6.0, 3.0], [4.0, -3.0]]])
    v = (1 + 1 + 9 + 9) / 1
    found = quality(g, e)
    cosine = (30 / (math.sqrt(45) * 5) + 0 / 25) / 2
    np.testing.assert_allclose(found.alignment, cosine)
    np.testing.assert_allclose(found.bias, math.sqrt((20 - v / 2) / 25))
    np.testing.assert_allclose(found.noise, math.sqrt(v / 2 / 25))
    np.testing.assert_allclose(found.variance, v / 25)
    np.testing.assert_allclose(found.signal_to_noise, (25 - v / 2) / v)
    assert found.signs == 3 / 4


def test_quality_of_several_cases():
    e = np.array([[1.0, 0.0], [0.0, 2.0], [2.0, 0.0]])
    g = np.array([[1.0, 0.0], [2.0, 0.0], [-2.0, 0.0]])[:, None]
    found = quality(g, e)
    np.testing.assert_allclose(found.alignment, 0, atol=1e-15)
    np.testing.assert_allclose(found.alignment_se, 1 / math.sqrt(3))
    np.testing.assert_allclose(found.bias, math.sqrt((8 + 16) / 9))
    assert found.noise == found.variance == 0
    assert found.signal_to_noise == math.inf
    assert found.signs == 1 / 2  # of those with a product above the least: one of two


def test_a_bias_below_the_noise_is_none():
    e, g = np.zeros((1, 1)) + 1, np.array([[[0.0], [4.0]]])  # (2 − 1)² < 8/2
    found = quality(g, e)
    assert found.bias == 0
    assert found.noise == 2
    assert quality(g - 2, e).signal_to_noise == 0


def test_tiny_products_have_no_sign():
    e = np.array([[1.0, 1e-6, 1.0]])
    g = np.array([[[1.0, -9e-5, -1e-9]]])
    assert quality(g, e).signs == 1 / 2
    assert quality(g * [1, 2, 1], e).signs == 1 / 3


def test_groups_are_measured_apart():
    e = np.array([[1.0, 2.0, 0.0]])
    g = np.array([[[1.0, -2.0, 5.0]]])
    found = quality(g, e, (slice(0, 1), np.array([1]), slice(None), [2]))
    assert found.alignment[:2].tolist() == [1, -1]
    np.testing.assert_allclose(found.alignment[2], -3 / math.sqrt(5 * 30))
    np.testing.assert_allclose(found.bias[:3], [0, 2, math.sqrt(41 / 5)])
    assert found.signs[:3].tolist() == [1, 0, 1 / 2]
    assert np.isnan([found.alignment[3], found.signs[3]]).all()
    assert found.bias[3] == math.inf


def test_no_gradient_at_all_is_nan_and_no_error():
    found = quality(np.zeros((2, 3, 4)), np.zeros((2, 4)))
    assert all(np.isnan(value).all() for value in found)


def test_a_network_that_has_diverged_is_not_left_out():
    e = np.array([[1.0, 0.0], [np.nan, np.nan]])
    assert np.isnan(quality(e[:, None], e).alignment).all()
    assert not np.isnan(quality(e[:1, None], e[:1]).alignment).any()


def test_a_case_without_a_gradient_does_not_count():
    """A stretch in which nothing is asked for."""
    e = np.array([[3.0, 4.0], [0.0, 0.0]])
    g = np.array([[[3.0, 4.0]], [[0.0, 0.0]]])
    assert quality(g, e).alignment == 1
    # but an estimate that is zero where there is a gradient has no alignment with it
    assert quality(g[::-1][:1], e[:1]).alignment == 0


def stretches(model, count=3):
    params, hidden = model.init(jax.random.key(0))
    hidden = jax.tree.map(lambda leaf: jnp.stack([leaf * s for s in (1, 2, -1)[:count]]), hidden)
    streams = [models.stream(model, 4, seed) for seed in range(count)]
    xs, ys = jax.tree.map(lambda *leaves: jnp.stack(leaves), *streams)
    draws = jax.random.normal(jax.random.key(5), (2, flatten(params).size))
    return params, hidden, xs, ys, draws


def actual(model, params, hidden, xs, ys, draws, rate):
    """What the steps along the draws take off the mean loss, averaged over them."""
    layout = flatten(params)
    theta, rest = layout.split(params)

    @jax.jit
    def mean_loss(theta):
        params = layout.join(theta, rest)

        def body(h, xy):
            h = model.transition(params, h, xy[0])
            return h, model.loss(params, h, xy[1])[0]

        return jnp.mean(jax.vmap(lambda h, xs, ys: jax.lax.scan(body, h, (xs, ys))[1])(hidden, xs, ys))

    return float(mean_loss(theta) - jnp.mean(jnp.stack([mean_loss(theta - rate * g) for g in draws])))


def test_the_second_order_is_the_decrease_of_a_quadratic_loss():
    model = models.quadratic()
    given = stretches(model)
    at = jax.jit(lambda rate: decrease(model, *given, rate))
    for rate in (0.01, 1.0):
        found = at(rate)
        np.testing.assert_allclose(found.second, actual(model, *given, rate), rtol=1e-10)
        assert not np.isclose(found.first, found.second, rtol=1e-3)
    # along the gradient itself some rate helps, and none more than the best
    gradient = descent(model, *given[:4])
    at = jax.jit(lambda rate: decrease(model, *given[:4], gradient[None], rate))
    found = [at(rate) for rate in (0.0, 1e-3, 0.03, 0.1, 1.0)]
    assert all(each.best >= each.second for each in found)
    np.testing.assert_allclose([each.best for each in found], found[0].best, rtol=1e-12)
    slope, bend = gradient @ gradient, 2 * (found[-1].first - found[-1].second)
    reached = at(slope / bend)
    np.testing.assert_allclose(reached.second, reached.best, rtol=1e-10)


def descent(model, params, hidden, xs, ys):
    """The gradient of the mean loss of all stretches."""
    each = jax.vmap(lambda *given: models.exact_gradient(model, params, *given))(hidden, xs, ys)
    return flatten(params).split(jax.tree.map(lambda leaf: leaf.mean(axis=0), each))[0]


def test_the_decrease_of_a_tanh_network():
    model = models.vanilla()
    given = stretches(model)
    at = jax.jit(lambda rate: decrease(model, *given, rate))
    coarse, fine = (abs(float(at(rate).second) - actual(model, *given, rate)) for rate in (1e-2, 1e-3))
    assert fine < coarse / 500  # third order
    coarse, fine = (abs(float(at(rate).first) - actual(model, *given, rate)) for rate in (1e-2, 1e-3))
    assert coarse / 150 < fine < coarse / 50  # second order


def test_uphill_and_downhill_without_end():
    model = models.quadratic()
    *given, _ = stretches(model)
    gradient = descent(model, *given)
    up = decrease(model, *given, -gradient[None], 0.1)
    assert up.first < 0
    assert up.best == 0
    assert decrease(model, *given, 0 * gradient[None], 0.1).best == 0
    assert math.isnan(decrease(model, *given, math.nan * gradient[None], 0.1).best)
    linear = Model(
        lambda key: (jnp.ones(2), jnp.zeros(1)),
        lambda params, h, x: 0 * h + params.sum() * x,
        lambda params, h, y: (h.sum(), h),
        (jnp.zeros(1), jnp.zeros(1)),
    )
    *given, _ = stretches(linear)
    assert decrease(linear, *given, jnp.ones((1, 2)), 0.1).best == math.inf


@pytest.mark.parametrize(("count", "steps", "estimates"), [(0, 3, 1), (1, 0, 1), (1, 1, 0)])
def test_a_decrease_of_nothing_is_refused(count, steps, estimates):
    model = models.quadratic()
    params, hidden, xs, ys, draws = stretches(model, 1)
    begin = lambda tree: jax.tree.map(lambda leaf: leaf[:count, :steps], tree)
    with pytest.raises(ValueError, match=f"stretches: {count}, steps: {steps}, estimates: {estimates}"):
        decrease(model, params, hidden[:count], begin(xs), begin(ys), draws[:estimates], 0.1)


@pytest.mark.parametrize("name", ["stacked", "normalised", "columns"])
def test_leaf_slices_are_where_the_leaves_are(name):
    params, _ = models.MODELS[name]().init(jax.random.key(0))
    vector = np.asarray(flatten(params).split(params)[0])
    found = leaf_slices(params)
    assert sum(part.stop - part.start for part in found.values()) == vector.size
    leaves = jax.tree.leaves(params)
    for part, leaf in zip(found.values(), leaves, strict=True):
        np.testing.assert_array_equal(vector[part], np.ravel(leaf))


def test_the_matrix_is_of_independent_draws():
    random = np.random.default_rng(0)
    exact, a, b = random.normal(size=(4, 3)), random.normal(size=(4, 5, 3)), random.normal(size=(4, 1, 3))
    matrix = alignments([exact[:, None], a, b])
    unit = lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True)
    pairs = np.einsum("cip,cjp->cij", unit(a), unit(a))
    other = [pairs[:, i, j] for i in range(5) for j in range(5) if i != j]
    np.testing.assert_allclose(matrix[1, 1], np.mean(other))
    np.testing.assert_allclose(matrix[2, 2], 1)  # without noise, with itself
    np.testing.assert_allclose(matrix[0, 0], 1)
    np.testing.assert_allclose(matrix[0, 1], np.mean(np.einsum("cp,cip->ci", unit(exact), unit(a))))
    np.testing.assert_allclose(matrix[1, 2], np.mean(np.einsum("cip,cjp->cij", unit(a), unit(b))))
    np.testing.assert_allclose(matrix, matrix.T)
    # an estimate of nothing agrees with nothing, and not the less with itself
    nothing = np.concatenate([np.zeros((4, 2, 3)), a[:, :1]], axis=1)
    assert alignments([exact[:, None], nothing])[1, 1] == pytest.approx(0, abs=1e-15)
    # a case without a gradient does not count
    silent = np.concatenate([exact, np.zeros((1, 3))])
    more = [np.concatenate([draws, np.ones((1, *draws.shape[1:]))]) for draws in (a, b)]
    np.testing.assert_allclose(alignments([silent[:, None], *more]), matrix)


def test_credit_is_a_share_of_what_is_due():
    due = np.array([[[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]], [[0.0, 5.0], [0.0, 2.0], [0.0, 0.0]]])
    half = credit(due / 2, due)
    np.testing.assert_allclose(half.fraction[:2], 1 / 2)
    np.testing.assert_allclose(half.error[:2], 0, atol=1e-15)
    np.testing.assert_allclose(half.weight, np.array([math.sqrt(50), math.sqrt(5), 0]) / math.sqrt(50))
    assert math.isnan(half.fraction[2])
    found = due.copy()
    found[1] = 0  # all of the first case, nothing of the second
    uneven = credit(found, due)
    np.testing.assert_allclose(uneven.fraction[:2], [1 / 2, 1 / 5])
    # residuals ± 25/2, of a ratio of sums over two cases
    np.testing.assert_allclose(uneven.error[0], math.sqrt(2 * 12.5**2 * 2 / 1) / 50)
