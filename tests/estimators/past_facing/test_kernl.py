import jax
import jax.numpy as jnp
import optax
import pytest

from online_grads import Model, batched, cells, eprop, gradient, kernl, learner, rflo, scan
from tests.models import MODELS, of_cell, problem, problem_of, relative_error, stream

FROZEN, KEY = optax.set_to_zero(), jax.random.key(1)


def run(estimator, given):
    return jax.jit(lambda *args: gradient(estimator, *args, key=jax.random.key(1)))(*given.args)


def test_with_identity_sensitivities_and_the_leak_as_decay_it_is_rflo():
    given = problem("vanilla", 8)
    expected = run(rflo(given.model), given)
    assert (
        relative_error(run(kernl(given.model, gamma=0.6, inner_optimizer=FROZEN), given), expected) <= 1e-10
    )
    assert relative_error(run(kernl(given.model, gamma=0.5, inner_optimizer=FROZEN), given), expected) > 1e-3


def trained(estimator, given, steps):
    xs, ys = stream(given.model, steps, seed=3)
    online = learner(estimator, optax.sgd(0.0))
    start = online.init(given.params, given.hidden, key=jax.random.key(1))
    return jax.jit(lambda xs, ys: scan(online, start, xs, ys))(xs, ys)


def test_the_noise_is_predicted_better_and_better():
    """With parameters at rest A and γ learn; without learning the prediction stays where it is."""
    given = problem("vanilla", 8)
    late = lambda losses: float(losses[-1000:].mean() / losses[:1000].mean())
    for inner, improves in ((optax.sgd(0.1), True), (FROZEN, False)):
        _, metrics = trained(kernl(given.model, sigma=0.1, inner_optimizer=inner), given, 6000)
        assert (late(metrics.info["noise_loss"]) < 0.5) == improves


def lif():
    return of_cell(cells.lif(3, 4, threshold=0.4))


@pytest.mark.parametrize("model", [MODELS["lstm"], MODELS["columns"], MODELS["normalised"], lif])
def test_one_step_is_the_immediate_influence_on_every_entry(model):
    """Before anything decays, KeRNL with A = 1 is e-prop, on hidden states of several leaves too."""
    one, several = problem_of(model(), 1), problem_of(model(), 8)
    plain = lambda model: kernl(model, inner_optimizer=FROZEN)
    assert relative_error(run(plain(one.model), one), run(eprop(one.model), one)) <= 1e-12
    assert relative_error(run(plain(several.model), several), run(eprop(several.model), several)) > 1e-4


def test_reset_every_begins_the_copy_anew():
    given = problem("vanilla", 8)
    estimator = kernl(given.model, sigma=0.1, reset_every=3, inner_optimizer=FROZEN)
    state = estimator.init(given.params, given.hidden, key=jax.random.key(1))
    for step, age in enumerate([1, 2, 3, 1, 2, 3, 1]):
        part = given.xs[step : step + 1], given.ys[step : step + 1]
        before = state.hidden
        state, _ = estimator.update(state, given.params, *part)
        assert int(state.influence.age) == age
        # the step after a reset starts from the network's own state, without noise
        alone = given.model.transition(given.params, before, part[0][0])
        assert jnp.allclose(state.influence.noisy, alone, atol=1e-12) == (age == 1)


def test_streams_of_a_batch_learn_one_kernel():
    given = problem_of(MODELS["vanilla"](), 8)
    xs, ys = (jnp.stack([leaf, 2 * leaf], axis=1) for leaf in (given.xs, given.ys))
    for axis_name, same in (("streams", True), (None, False)):
        estimator = batched(kernl(given.model, sigma=0.3, axis_name=axis_name), 2)
        state = estimator.init(given.params, given.hidden, key=jax.random.key(1))
        state, _ = jax.jit(estimator.update)(state, given.params, xs, ys)
        one, other = state.streams.influence.learned.kernel.A
        assert bool(jnp.all(one == other)) == same


def test_without_noise_the_loss_must_read_what_is_kept():
    """The trace lies at s, the loss reads r, which follows s a step later: only a learned A leads there."""

    def model(read):
        return Model(
            lambda key: (jnp.ones((2, 2)), {"r": jnp.zeros(2), "s": jnp.zeros(2)}),
            lambda W, h, x: {"r": 0.5 * (h["r"] + h["s"]), "s": jnp.tanh(W @ h["s"] + x)},
            lambda W, h, y: (jnp.sum((h[read] - y) ** 2), ()),
            (jnp.zeros(2), jnp.zeros(2)),
        )

    refusal = r"kernl with sigma=0.* would give params a gradient of zero: .*; take sigma > 0, or use rtrl$"
    with pytest.raises(ValueError, match=refusal):
        kernl(model("r"), sigma=0.0)
    kernl(model("r"))
    kernl(model("s"), sigma=0.0)
    jax.eval_shape(lambda sigma: kernl(model("r"), sigma=sigma).init(*model("r").init(None), key=KEY), 0.0)


def test_bad_arguments():
    model = MODELS["vanilla"]()
    with pytest.raises(ValueError, match=r"sigma must be at least 0, got -1\.0"):
        kernl(model, sigma=-1.0)
    with pytest.raises(ValueError, match="reset_every must be at least 1, got 0"):
        kernl(model, reset_every=0)
    with pytest.raises(ValueError, match="kernl is local"):
        kernl(MODELS["gru_reset_before"]())
    with pytest.raises(ValueError, match=r"gamma must be finite, got nan"):
        kernl(model, gamma=float("nan"))
    with pytest.raises(TypeError, match="sigma must be a number, got 'a'"):
        kernl(model, sigma="a")
    with pytest.raises(TypeError, match=r"inner_optimizer must be an optax GradientTransformation, got 0\.1"):
        kernl(model, inner_optimizer=0.1)
