"""The split: where weights act, and that its parts add up to the derivatives of the transition."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

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


SITES = {  # [batch, pre, post], * for a direct use
    "gru": "0 [1, 7, 8] 1 [1, 4, 4] 2 [1, 3, 4] 3 [1, 1, 8]* 4 [1, 1, 4]* 5 [1, 1, 4]*",
    "synapse twice and directly": "0 [1, 4, 4] 0 [1, 4, 4] 1 [1, 3, 4] 2 [1, 1, 4]*",
    "W and its transpose": "0 [1, 4, 4] 1 [1, 4, 4]",
    "product of parameters": "0 [1, 4, 4]",
    "weights made of the input": "0 [1, 3, 16]",
    "one-hot constant": "1 [1, 4, 4] 0 [1, 4, 4]",
    "in a scan": "0 [1, 1, 16]* 1 [1, 1, 8]*",
    "batch axis in the middle": "0 [3, 2, 2]",
    "two contracted axes": "0 [1, 4, 4]",
    "mapped columns": "0 [2, 3, 3]",
    "shared by columns": "0 [1, 1, 4]*",
    "without input": "0 [1, 4, 4] 1 [1, 0, 4]",
    "rematerialised": "0 [1, 4, 4]",
}


@pytest.mark.parametrize("name", SITES)
def test_where_the_weights_act(name):
    show = lambda s: f"{s.weight} {[s.batch, s.pre, s.post]}{'*' if s.direct else ''}"
    assert " ".join(map(show, case(name).structure.sites)) == SITES[name]


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


@jax.custom_vjp
def double(h):
    return 2 * h


double.defvjp(lambda h: (2 * h, None), lambda _, g: (2 * g,))

RULES = {
    "custom_vjp": (lambda p, h, x: double(p["W"] @ h), "a custom_vjp, define a custom_jvp instead"),
    "custom_vjp in a scan": (
        lambda p, h, x: lax.scan(lambda c, _: (double(p["W"] @ c), None), h, None, 2)[0],
        "a custom_vjp, define a custom_jvp instead",
    ),
    "while": (
        lambda p, h, x: lax.while_loop(lambda c: c[0] < 1, lambda c: p["W"] @ c + 1, h),
        "JAX says: Reverse-mode differentiation does not work for lax.while_loop",
    ),
    "no rule": (lambda p, h, x: (p["W"] @ h).at[jnp.array([0, 0])].mul(h[0]), "JAX says: scatter_mul"),
    "custom_vjp of parameters": (lambda p, h, x: double(p["W"]) @ h, None),
    "custom_vjp of the input": (lambda p, h, x: p["W"] @ h + double(x[0]), None),
}


@pytest.mark.parametrize("name", RULES)
def test_what_has_no_derivative_in_both_modes_is_refused(name):
    transition, words = RULES[name]
    model = strange("compared")._replace(transition=transition)
    expected = contextlib.nullcontext() if words is None else pytest.raises(ValueError, match=words)
    with expected:
        rtrl(model)


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
