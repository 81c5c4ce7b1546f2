"""The bounds: that each does the work that it says, all of it and on all that is carried."""

import inspect

import jax
import jax.numpy as jnp
import pytest

from online_grads import ESTIMATORS
from online_grads.bench import learning
from online_grads.bench_model import model_of
from online_grads.bounds import BOUNDS, PARTICLES
from online_grads.cells import CELLS

N, X, Y = 16, jnp.ones(8, jnp.float32), jnp.ones(4, jnp.float32)


def begun(cell, name, n=N):
    """(the estimator's state, its bound's program, the first (params, hidden)), arrays as shapes."""
    model = model_of(cell, n)
    start = jax.eval_shape(model.init, jax.random.key(0))
    program = learning(model, ESTIMATORS[name].constructor(model))
    state = jax.eval_shape(program.init, *start)[1]
    return state, BOUNDS[ESTIMATORS[name].bound](model, state), start


def analysis(program, start):
    """XLA's counts for one step."""
    carry = jax.eval_shape(program.init, *start)
    return jax.jit(program.step).lower(carry, X, Y).compile().cost_analysis()


def columns(state):
    """How many columns of n entries the products J·M and J·B have."""
    influence = state.influence
    carried = influence if isinstance(influence, list) else [s.B for s in influence.products]
    carried = carried + ([] if isinstance(influence, list) else influence.direct)
    return sum(leaf.size for leaf in carried) // N


def test_every_estimator_has_a_bound():
    assert {row.bound for row in ESTIMATORS.values()} == set(BOUNDS)
    for name, row in ESTIMATORS.items():
        if row.bound == "forward passes":
            assert inspect.signature(row.constructor).parameters["particles"].default == PARTICLES, name


@pytest.mark.parametrize("cell", ["vanilla_rnn", "gru"])
@pytest.mark.parametrize("name", ["rtrl", "kf_rtrl", "reverse_kf_rtrl", "optimal_kronecker"])
def test_a_product_is_with_all_that_the_jacobian_moves(cell, name):
    state, program, start = begun(cell, name)
    flops = analysis(program, start)["flops"]
    assert flops == pytest.approx(2 * N**2 * columns(state), rel=0.05)
    if name == "rtrl":
        # one column per weight of a drive; at least as many as there are parameters in the cell
        assert columns(state) >= sum(leaf.size for leaf in jax.tree.leaves(start[0]["cell"]))


def test_a_product_of_another_size_is_another_bound():
    one, other = (begun("vanilla_rnn", "rtrl", n) for n in (N, 2 * N))
    assert analysis(*other[1:])["flops"] > 12 * analysis(*one[1:])["flops"]


def test_the_products_keep_their_size():
    _, program, _ = begun("vanilla_rnn", "rtrl")
    carry = first = program.init(None, None)
    for _ in range(3):
        carry = program.step(carry, X, Y)
    assert not jnp.allclose(carry[1], first[1], atol=1e-3)
    assert jnp.allclose(jnp.linalg.norm(carry[1]), jnp.linalg.norm(first[1]), rtol=1e-4)


@pytest.mark.parametrize("name", ["snap", "eprop", "rflo", "kernl"])
def test_a_stream_has_the_bytes_of_influence_and_parameters(name):
    state, program, start = begun("gru", name)
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves((state.influence, start[0])))
    array, factor, *_ = jax.eval_shape(program.init, *start)
    assert array.size * array.dtype.itemsize == size
    assert analysis(program, start)["flops"] == pytest.approx(array.size, rel=0.05)
    assert factor.shape == ()


def test_the_passes_count_what_they_are_made_of():
    matrices = N * (N + 8)  # entries of W_rec and W_in, 2 operations each
    forward = 2 * matrices
    readout = 2 * 4 * N
    flops = {
        bound: analysis(*begun("vanilla_rnn", name)[1:])["flops"]
        for bound, name in [("jvp", "uoro"), ("gradient", "tbptt"), ("passes", "es")]
    }
    # the forward pass; two tangents per matrix; one outer product and one transposed product
    assert 0.9 * (4 * forward) < flops["jvp"] < 1.4 * (5 * forward)
    assert 0.9 * (2.5 * forward + 3 * readout) < flops["gradient"] < 1.6 * (3 * forward + 3 * readout)
    assert 0.95 < flops["passes"] / (PARTICLES * (forward + readout)) < 1.2


@pytest.mark.parametrize("cell", sorted(CELLS))
@pytest.mark.parametrize("name", ["uoro", "tbptt", "es"])
def test_the_passes_run_on_every_cell_and_stay_finite(cell, name):
    model = model_of(cell, 4)
    program = BOUNDS[ESTIMATORS[name].bound](model, None)
    body = lambda carry, _: (program.step(carry, X, Y), None)
    after, _ = jax.lax.scan(body, program.init(*model.init(jax.random.key(0))), length=200)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
