"""What the Kronecker methods share: direct weights exactly, batches, several synapses, refusals."""

import jax
import jax.numpy as jnp
import pytest

from online_grads import Model, gradient, kf_rtrl, memory, optimal_kronecker, reverse_kf_rtrl, rtrl
from online_grads.estimators.past_facing import factored
from tests.models import EXAMPLE, MODELS, problem, problem_of, relative_error

CONSTRUCTORS = [kf_rtrl, reverse_kf_rtrl, optimal_kronecker]


def run(estimator, given, seed=1):
    return jax.jit(lambda *args: gradient(estimator, *args, key=jax.random.key(seed)))(*given.args)


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_a_weight_that_meets_no_vector_is_exact(constructor):
    """Gains and decays have no noise beside synapses that have."""
    given = problem("normalised", 8)
    got = run(constructor(given.model), given)
    assert relative_error(got["decay"], given.exact["decay"]) <= 1e-10
    assert relative_error(got["input"], given.exact["input"]) > 1e-6


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_the_first_step_is_exact(constructor):
    """One product per synapse is all of the influence of one step, so two steps see all of it."""
    for name in ("lstm", "columns"):
        given = problem(name, 2)
        exact = relative_error(run(constructor(given.model), given), given.exact)
        assert (exact <= 1e-6) == (constructor is not reverse_kf_rtrl)


@pytest.mark.parametrize("constructor", CONSTRUCTORS)
def test_a_diagonal_cell_without_synapses_is_rtrl(constructor):
    def init(key):
        return {"decay": jnp.linspace(0.3, 0.9, 4), "out": jnp.ones((2, 4))}, jnp.ones(4)

    transition = lambda params, h, x: params["decay"] * jnp.tanh(h) + jnp.sum(x)
    loss = lambda params, h, y: (jnp.sum((params["out"] @ h - y) ** 2), ())
    given = problem_of(Model(init, transition, loss, EXAMPLE))
    assert relative_error(run(constructor(given.model), given), given.exact) <= 1e-10


def test_memory_is_quadratic():
    """An LSTM's joint matrix and bias [4n, n+m+1]: one B with 2n · 4n entries."""
    model = MODELS["lstm"]()
    params, hidden = model.init(jax.random.key(0))
    n, pre, post, key_bytes = 8, 8, 16, 8
    expected = 8 * (n + pre + n * post) + key_bytes
    assert memory(kf_rtrl(model), params, hidden) == expected
    assert memory(rtrl(model), params, hidden) > 3 * expected


def test_a_large_direct_weight_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(factored, "DIRECT_LIMIT", 10)
    with pytest.raises(ValueError, match=r"params\['decay'\].*cannot be factored.*4 x 4.*limit of 10"):
        kf_rtrl(MODELS["normalised"]())


def test_epsilon_is_checked():
    for constructor in (kf_rtrl, reverse_kf_rtrl):
        with pytest.raises(ValueError, match="epsilon must be at least 0, got -1"):
            constructor(MODELS["gru"](), epsilon=-1)
