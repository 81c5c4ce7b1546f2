"""Every estimator on the modules of the three frameworks, against what the frameworks say themselves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import eprop, gradient, kf_rtrl, rtrl, snap, uoro
from online_grads.adapters.separate import read_off
from tests.adapters.modules import CASES, STEPS, problem
from tests.models import relative_error

KEY = jax.random.key(2)
# one per framework, and an output that is carried
SEVERAL = ("linen SimpleCell", "nnx OptimizedLSTMCell", "equinox GRUCell", "linen hand-written")


def errors(estimator, given, steps=STEPS):
    """The relative error of the gradient of the first steps' mean loss."""
    xs, ys = given.xs[:steps], given.ys[:steps]
    got = jax.jit(lambda *args: gradient(estimator, *args, key=KEY))(given.params, given.hidden, xs, ys)
    return relative_error(got, given.exact[steps])


@pytest.mark.parametrize("name", CASES)
def test_rtrl_is_exact(name):
    given = problem(name)
    assert errors(rtrl(given.model), given) <= 1e-10


@pytest.mark.parametrize("name", SEVERAL)
def test_snap_and_eprop_are_exact_where_they_drop_nothing(name):
    given = problem(name)
    assert errors(snap(given.model, order=STEPS + 1), given) <= 1e-10
    assert errors(eprop(given.model, hops=STEPS - 1), given) <= 1e-10


@pytest.mark.parametrize("name", SEVERAL)
def test_the_unbiased_ones_are_exact_in_the_first_step(name):
    """Beyond it their noise is tested by `python -m tests.benchmarks.adapters`."""
    given = problem(name)
    for estimator in (kf_rtrl(given.model), uoro(given.model)):
        assert errors(estimator, given, steps=1) <= 1e-10


def test_what_is_dropped_is_seen():
    given = problem("linen SimpleCell")
    assert errors(snap(given.model), given) > 1e-3


@pytest.mark.parametrize("name", CASES)
def test_the_output_is_carried_only_where_it_sees_more_than_the_carry(name):
    assert bool(jax.tree.leaves(problem(name).hidden.output)) == ("hand-written" in name)


@pytest.mark.parametrize(
    ("step", "readable"),
    [
        (lambda w, h, x: ((jnp.tanh(x + h[0]), x), w * x), True),  # the carry holds x
        (lambda w, h, x: ((jnp.tanh(x + h[0]), x), w * h[0]), False),  # the carry before the step
        (lambda w, h, x: ((w * h[0] + x, h[1]), h[1] + w), True),  # a part that no step changes
        (lambda w, h, x: ((jnp.round(w * h[0] + x), x), w * h[0]), False),  # the carry is coarser
        (lambda w, h, x: ((w * h[0], w + h[1]), jnp.sum(w)), True),  # a parameter alone
    ],
)
def test_what_is_read_off_the_carry(step, readable):
    w, h, x = jnp.asarray(0.7), (jnp.arange(2.0), jnp.ones(2)), jnp.full(2, 3.0)
    read = read_off(step, w, h, x)
    assert (read is not None) == readable
    if readable:
        moved, out = step(w, h, x)
        np.testing.assert_array_equal(read(w, moved), out)
