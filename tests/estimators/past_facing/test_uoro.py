from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import averaged, gradient, tbptt, uoro
from online_grads.estimators.past_facing.uoro import ratio
from tests.models import MODELS, problem, relative_error

STEPS, COPIES, CHUNK = 8, 20_000, 4_000
flat = lambda tree: jax.flatten_util.ravel_pytree(tree)[0]


def samples(estimator, name, window, copies=COPIES):
    """[copies, p] independent estimates of the summed loss's gradient, and the exact one [p]."""
    given = problem(name, STEPS)
    made = estimator(given.model)
    one = lambda key: STEPS * flat(gradient(made, *given.args, key=key, window=window))
    keys = jax.random.split(jax.random.key(1), copies)
    drawn = jax.jit(lambda keys: jax.lax.map(jax.vmap(one), keys.reshape(-1, min(copies, CHUNK))))(keys)
    return np.asarray(drawn).reshape(copies, -1), np.asarray(STEPS * flat(given.exact))


def worst_z(drawn, exact):
    """The largest |z| over parameters, and the smallest bias that would have been significant."""
    spread = np.std(drawn, axis=0) / np.sqrt(len(drawn))
    bias = np.abs(np.mean(drawn, axis=0) - exact)
    # where the estimate has no variance it must be exact
    assert np.all(bias[spread < 1e-12] < 1e-10)
    noisy = spread >= 1e-12
    return np.max(bias[noisy] / spread[noisy], initial=0.0), threshold(noisy.sum()) * np.median(spread[noisy])


def threshold(parameters):
    """Bonferroni's |z| for one false alarm in a thousand runs."""
    return NormalDist().inv_cdf(1 - 0.0005 / parameters)


@pytest.mark.parametrize(("window", "direct"), [(1, True), (4, True), (1, False)])
@pytest.mark.parametrize("name", ["vanilla", "lstm", "gru"])
def test_unbiased(name, window, direct):
    drawn, exact = samples(lambda model: uoro(model, direct=direct), name, window)
    z, visible = worst_z(drawn, exact)
    print(f"{name}, k = {window}, direct = {direct}: max |z| {z:.2f}, visible bias {visible:.1e}")
    assert z < threshold(exact.size)


def test_a_biased_estimator_fails_the_same_test():
    """Truncation, given the same noise as UORO has, is seen."""
    drawn, exact = samples(uoro, "gru", 1)
    truncated, _ = samples(tbptt, "gru", 4, copies=1)
    assert worst_z(drawn - exact + truncated, exact)[0] > threshold(exact.size)


def test_a_segment_over_the_whole_stream_is_exact():
    drawn, exact = samples(uoro, "lstm", STEPS, copies=2)
    assert relative_error(drawn[0], exact) < 1e-10
    noisy, _ = samples(uoro, "lstm", STEPS // 2, copies=2)
    assert relative_error(noisy[0], exact) > 1e-3


def test_the_direct_form_has_less_variance_and_copies_divide_it():
    variance = lambda estimator: float(np.var(samples(estimator, "vanilla", 1)[0], axis=0).sum())
    direct, late = variance(uoro), variance(lambda model: uoro(model, direct=False))
    assert 3 * direct < late
    assert variance(lambda model: averaged(uoro(model), 4)) == pytest.approx(direct / 4, rel=0.1)


@pytest.mark.parametrize(
    ("over", "under", "expected"), [(4.0, 1.0, 2.0), (0.0, 3.0, 1.0), (3.0, 0.0, 1.0), (0.0, 0.0, 1.0)]
)
def test_a_vanishing_norm_gives_ratio_one_without_epsilon(over, under, expected):
    assert float(ratio(jnp.asarray(over), jnp.asarray(under), 0.0)) == expected


def test_epsilon_may_be_traced_and_is_checked_when_it_is_not():
    with pytest.raises(ValueError, match="epsilon must be at least 0, got -1"):
        uoro(MODELS["gru"](), epsilon=-1.0)
    given = problem("vanilla", STEPS)

    @jax.jit
    def run(epsilon):
        return gradient(uoro(given.model, epsilon=epsilon), *given.args, key=jax.random.key(1))

    assert relative_error(run(0.0), run(1e-2)) > 1e-4
