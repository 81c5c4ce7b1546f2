"""The split: where weights act, and that its parts add up to the derivatives of the transition."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import gradient, rtrl, snap
from tests.models import MODELS, problem_of, relative_error
from tests.one_step import case
from tests.strange import CELLS, M, N, strange

close = lambda got, expected: np.testing.assert_allclose(got, expected, rtol=1e-11, atol=1e-12)


def decomposition(structure, step):
    """J₀ + Σ_l D_l w_lᵀ V_l."""
    total = np.asarray(step.held)
    for site, reach, vectors in zip(structure.sites, step.drives, step.vectors, strict=False):
        weight = np.transpose(step.weights[site.weight], sum(site.axes, ()))
        weight = weight.reshape(site.batch, site.pre, site.post)
        total = total + np.einsum("rbi,bji,bjc->rc", reach, weight, vectors)
    return total


@pytest.mark.parametrize("name", [*MODELS, *CELLS])
def test_the_parts_add_up(name):
    """To the step itself, to ∂h'/∂h, and to ∂h'/∂θ for every parameter."""
    _, structure, _, at, step_at = case(name)
    for seed in (1, 2):
        step = step_at(*at(seed))
        close(step.moved, step.expected)
        close(decomposition(structure, step), step.jacobian)
        for got, expected in zip(step.immediate, step.exact, strict=True):
            close(got, expected)
            # float noise aside, zero exactly where the truth is
            np.testing.assert_array_equal(abs(got) > 1e-14, abs(expected) > 1e-14)


@pytest.mark.parametrize("name", ["gru_reset_before", "stacked"])
def test_held_and_flowing_differ_where_one_drive_feeds_another(name):
    """Negative control: with D from held drives the sum is wrong."""
    _, structure, _, at, step_at = case(name)
    theta, h, rest, x = at(1)
    step = step_at(theta, h, rest, x)
    zeros = [jnp.zeros((site.batch, site.post)) for site in structure.sites]
    drives = structure.step(step.weights, h, rest, x)[3]

    def held(perturb):
        hold = [z + e for z, e in zip(drives, perturb, strict=False)]
        return structure.step(step.weights, h, rest, x, hold=hold)[0]

    reach = jax.jit(jax.jacfwd(held))(zeros)
    assert float(jnp.max(abs(decomposition(structure, step._replace(drives=reach)) - step.jacobian))) > 1e-3


def test_parameters_replace_weights_that_are_larger():
    weights = lambda name, dense: [w.shape for w in case(name, dense).structure.weights]
    assert weights("skew-symmetric", False) == [(N, N)]
    assert weights("skew-symmetric", True) == [(6,)]
    assert weights("hypernetwork", True) == [(N, N)]
    assert case("W and its transpose", True).structure.trained == 1
    assert case("complex state").structure.names == ["params['W']", "params['s']", "params['b']"]
    assert case("product of parameters").structure.names == ["params['A'], params['C']"]


@pytest.mark.parametrize("name", ["skew-symmetric", "product of parameters", "w·w", "normalised"])
def test_whole_parameters_add_up_too(name):
    _, structure, _, at, step_at = case(name, dense=True)
    step = step_at(*at(1))
    close(decomposition(structure, step), step.jacobian)
    for got, expected in zip(step.immediate, step.exact, strict=True):
        close(got, expected)


def test_pullback_is_the_gradient_through_the_effective_weights():
    found, structure, _, at, _ = case("normalised")
    theta, *given = at(3)
    loss = lambda weights: jnp.sum(jnp.sin(structure.step(weights, *given)[0]))
    weights = structure.effective(theta)
    assert sum(w.size for w in weights) != sum(leaf.size for leaf in theta)
    trained = jax.jit(jax.grad(lambda trained: loss([*trained, *weights[structure.trained :]])))
    got = structure.pullback(theta, trained(weights[: structure.trained]))
    expected = jax.jit(jax.grad(lambda theta: jnp.sum(jnp.sin(found.transition(theta, *given)[0]))))(theta)
    jax.tree.map(close, got, expected)


EXACT = {
    "synapse twice and directly": rtrl,
    "complex state": rtrl,
    # of an order at which the mask keeps whatever the pattern has
    "log-sum-exp of rows": functools.partial(snap, order=2 * N),
    "padded": functools.partial(snap, order=2 * N),
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_over_time(name):
    given = problem_of(strange(name), 6)
    run = lambda *args: gradient(EXACT[name](given.model), *args, key=jax.random.key(1), window=3)
    assert relative_error(jax.jit(run)(*given.args), given.exact) <= 1e-10


def test_constructed_within_jit_vmap_and_grad():
    """Also where the model closes over a tracer."""
    model = strange("compared")
    params, hidden = model.init(None)

    def gradient_at(scale):
        scaled = model._replace(transition=lambda p, h, x: scale * model.transition(p, h, x))
        estimator = snap(scaled)
        state = estimator.init(params, hidden, key=jax.random.key(0))
        return estimator.update(state, params, jnp.ones((1, M)), jnp.ones(1))[1].grads["W"]

    def exact(scale):
        end = lambda params: scale * model.transition(params, hidden, jnp.ones(M))
        return jax.grad(lambda params: model.loss(params, end(params), 1.0)[0])(params)["W"]

    for transform in (lambda f: f, jax.vmap, jax.jacfwd):
        scale = np.array([0.5, 2.0]) if transform is jax.vmap else 2.0
        close(*(jax.jit(transform(f))(scale) for f in (gradient_at, exact)))
