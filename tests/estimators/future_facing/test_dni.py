import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads import Model, batched, dni, feedback, gradient, readouts, with_resets
from online_grads.readouts import Readout
from tests.models import HIDDEN, INPUTS, MODELS, OUTPUTS, fixed_start, problem, relative_error, stream

FEATURES = HIDDEN + OUTPUTS + 1


def orbit(name, period=4, around=2000):
    """A model on a periodic orbit: its parameters, a state of the orbit, and one period of inputs."""
    model = MODELS[name]()
    params, hidden = jax.jit(model.init)(jax.random.key(0))
    xs, ys = stream(model, period)

    def once(hidden, _):
        return jax.lax.scan(lambda h, x: (model.transition(params, h, x), None), hidden, xs)[0], None

    return model, params, jax.lax.scan(once, hidden, None, around)[0], xs, ys


def infinite_credit(model, params, hidden, xs, ys, periods=60):
    """[period, n] the credit of every state of the orbit, from so many periods to come."""
    flat = lambda tree: jax.flatten_util.ravel_pytree(tree)
    h0, unravel = flat(hidden)
    xs, ys = (jnp.tile(leaf, (periods, 1)) for leaf in (xs, ys))

    def total(nudges):
        def body(h, step):
            x, y, nudge = step
            h = flat(model.transition(params, unravel(h), x))[0] + nudge
            return h, model.loss(params, unravel(h), y)[0]

        return jnp.sum(jax.lax.scan(body, h0, (xs, ys, nudges))[1])

    period = len(xs) // periods
    return jax.grad(total)(jnp.zeros((len(xs), h0.size)))[:period]


def learned_credit(estimator, model, params, hidden, xs, ys):
    """[period, n] what the estimator's synthesiser says of every state, after 20,000 times around."""
    state = jax.jit(estimator.init)(params, hidden, key=jax.random.key(1))
    around = lambda state, _: (estimator.update(state, params, xs, ys)[0], None)
    state = jax.jit(lambda state: jax.lax.scan(around, state, None, 20_000)[0])(state)
    says = lambda state, xy: (
        moved := estimator.update(state, params, *xy)[0],
        (moved.learned.synthesiser, moved.learned.lesson.features),
    )
    return jax.lax.scan(says, state, (xs[:, None], ys[:, None]))[1]


@pytest.mark.parametrize("name", ["vanilla", "lstm"])
@pytest.mark.parametrize("rate", [0.1, 0.0])
def test_on_a_periodic_orbit_it_learns_the_credit_of_the_whole_future(name, rate):
    given = orbit(name)
    estimator = dni(given[0], inner_optimizer=optax.sgd(rate), copy_every=1)
    S, features = learned_credit(estimator, *given)
    error = jnp.einsum("tnm,tm->tn", S, features) - infinite_credit(*given)
    assert (jnp.abs(error).max() < 1e-6) == (rate > 0)


def test_a_synthesiser_of_one_s_own_and_features_of_one_s_own():
    """A hidden layer, fed with h alone."""
    given = orbit("vanilla")

    def init(key):
        keys = jax.random.split(key)
        return jax.random.normal(keys[0], (16, HIDDEN)), jnp.zeros((HIDDEN, 16))

    apply = lambda S, features: S[1] @ jnp.tanh(S[0] @ features)
    estimator = dni(
        given[0],
        synthesiser=Readout(init, apply),
        features=lambda hidden, y: hidden,
        inner_optimizer=optax.sgd(0.05),
        copy_every=3,
    )
    error = jax.vmap(apply)(*learned_credit(estimator, *given)) - infinite_credit(*given)
    assert jnp.abs(error).max() < 1e-6


@pytest.mark.parametrize("rate", [0.3, 0.0])
def test_the_learned_jacobian_of_a_rotation_is_the_rotation(rate):
    """It starts at the exact one; put at zero, it finds back."""
    angle = 0.7
    R = jnp.asarray([[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]])
    model = Model(
        init=lambda key: ({"R": R, "V": jnp.eye(2)}, jnp.ones(2)),
        transition=lambda params, h, x: params["R"] @ h,
        loss=lambda params, h, y: (jnp.sum(jnp.square(params["V"] @ h - y)), h),
        example=(jnp.zeros(0), jnp.zeros(2)),
    )
    estimator = dni(model, jacobian="learned", jacobian_optimizer=optax.sgd(rate))
    params, hidden = jax.jit(model.init)(None)
    state = jax.jit(estimator.init)(params, hidden, key=jax.random.key(0))
    np.testing.assert_allclose(state.learned.jacobian, R, rtol=1e-12)
    state = state._replace(learned=state.learned._replace(jacobian=jnp.zeros((2, 2))))
    state, estimate = jax.jit(estimator.update)(state, params, jnp.zeros((500, 0)), jnp.zeros((500, 2)))
    assert (np.abs(state.learned.jacobian - R).max() < 1e-6) == (rate > 0)
    assert (estimate.info["jacobian_loss"] < 1e-12) == (rate > 0)


def test_dni_b_moves_as_its_equations_say():
    """Learned Jacobian, squashed credit, random feedback: two steps by hand on a joint matrix."""
    given = problem("vanilla", 4)
    model, params, hidden, xs, ys, _ = given
    B = jax.random.normal(jax.random.key(7), (HIDDEN, OUTPUTS))
    rate, rate_J = 0.2, 0.1
    estimator = dni(
        model,
        inner_optimizer=optax.sgd(rate),
        copy_every=2,
        jacobian="learned",
        jacobian_optimizer=optax.sgd(rate_J),
        squash=True,
        feedback=feedback.fixed(B),
    )
    state = jax.jit(estimator.init)(params, hidden, key=jax.random.key(0))
    A = A_copy = jax.random.normal(jax.random.key(3), (HIDDEN, FEATURES))
    state = state._replace(learned=state.learned._replace(synthesiser=A, copy=A))
    J, previous = state.learned.jacobian, None
    for t in range(4):
        before, h = state.hidden, model.transition(params, state.hidden, xs[t])
        prediction = model.loss(params, h, ys[t])[1]
        q = B @ (jax.nn.softmax(prediction) * jnp.sum(ys[t]) - ys[t])
        tilde = jnp.concatenate([h, ys[t], jnp.ones(1)])
        J = J - rate_J * jnp.outer(J @ before - h, before)
        if previous is not None:
            old_q, old_tilde = previous
            target = old_q + jnp.tanh(A_copy @ tilde) @ J
            A = A - rate * jnp.outer(A @ old_tilde - target, old_tilde)
            A_copy = A if t == 2 else A_copy
        previous = q, tilde
        state, estimate = jax.jit(estimator.update)(state, params, xs[t : t + 1], ys[t : t + 1])
        np.testing.assert_allclose(state.learned.jacobian, J, rtol=1e-10)
        np.testing.assert_allclose(state.learned.synthesiser, A, rtol=1e-10)
        np.testing.assert_allclose(state.learned.copy, A_copy, rtol=1e-10)
        _, pull = jax.vjp(lambda p, b=before, t=t: model.transition(p, b, xs[t]), params)
        expected = pull(A @ tilde)[0]["cell"]
        assert relative_error(estimate.grads["cell"], expected) <= 1e-10


def test_a_learned_jacobian_starts_finite_where_silence_is_no_input():
    """The input is a time step, and this network divides by it."""
    base = MODELS["vanilla"]()
    model = base._replace(transition=lambda p, h, x: base.transition(p, h / jnp.sum(x**2), x))
    params, hidden = jax.jit(model.init)(jax.random.key(0))
    state = dni(model, jacobian="learned").init(params, hidden, key=jax.random.key(1))
    assert jnp.all(jnp.isfinite(state.learned.jacobian))
    exact = jax.jacobian(lambda h: model.transition(params, h, jnp.zeros(INPUTS)))(hidden)
    assert not jnp.all(jnp.isfinite(exact))


@pytest.mark.parametrize("window", [2, 8])
def test_segments_change_nothing(window):
    given = problem("columns", 8)
    estimator = dni(given.model, inner_optimizer=optax.sgd(0.1), copy_every=2)
    run = lambda window: gradient(estimator, *given.args, key=jax.random.key(1), window=window)
    assert relative_error(run(window), run(1)) <= 1e-10


@pytest.mark.parametrize("jacobian", ["exact", "learned"])
@pytest.mark.parametrize("last_only", [False, True])
def test_the_end_of_an_episode_is_learned(last_only, jacobian):
    """Episodes of four steps, decay 0.8, one feature per step: the credit is a sum of powers."""
    base = Model(
        init=lambda key: ({"w": jnp.asarray(0.3)}, {"h": jnp.zeros(1), "step": jnp.zeros((), jnp.int32)}),
        transition=lambda params, hidden, x: {
            "h": 0.8 * hidden["h"] + params["w"] * x,
            "step": hidden["step"] + 1,
        },
        loss=lambda params, hidden, y: (jnp.sum(hidden["h"]) * y, y),
        example=(jnp.zeros(1), jnp.zeros(())),
    )
    params, start = jax.jit(base.init)(None)
    model = with_resets(base, start)
    # step 0 is before any loss: the loss of a step weighs its state by y
    weights = jnp.asarray([0.0, 0.0, 0.0, 1.0]) if last_only else jnp.ones(4)
    episode = (jnp.ones((4, 1)), jnp.arange(4) == 0), weights
    estimator = dni(
        model,
        features=lambda hidden, y: jax.nn.one_hot(hidden["step"] - 1, 4),
        inner_optimizer=optax.sgd(0.5),
        copy_every=1,
        jacobian=jacobian,  # learned it starts at 0.8, and is left alone
        jacobian_optimizer=optax.sgd(0.0) if jacobian == "learned" else None,
    )
    state = jax.jit(estimator.init)(params, start, key=jax.random.key(0))
    again = lambda state, _: (estimator.update(state, params, *episode)[0], None)
    state = jax.jit(lambda state: jax.lax.scan(again, state, None, 200)[0])(state)
    powers = jnp.asarray([[0.8 ** (u - t) if u >= t else 0.0 for u in range(4)] for t in range(4)])
    np.testing.assert_allclose(state.learned.synthesiser[0], powers @ weights, atol=1e-8)
    _, estimate = jax.jit(estimator.update)(state, params, *episode)
    np.testing.assert_allclose(estimate.grads["w"], jnp.mean(powers @ weights), atol=1e-8)


def test_a_stream_that_begins_anew_does_not_dilute_what_the_others_learn():
    """Of two streams one is reset at every step: Ĵ learns from the other as if that were alone."""
    model = fixed_start(MODELS["gru"]())
    params, hidden = jax.jit(model.init)(jax.random.key(0))
    (xs, resets), ys = stream(model, 6)
    options = {"jacobian": "learned", "jacobian_optimizer": optax.sgd(0.1)}
    alone = dni(model, **options)
    state = jax.jit(alone.init)(params, hidden, key=jax.random.key(1))
    expected = jax.jit(alone.update)(state, params, (xs, resets), ys)[0].learned.jacobian
    both = batched(dni(model, axis_name="streams", **options), 2)
    state = jax.jit(both.init)(params, hidden, key=jax.random.key(1))
    double = lambda leaf: jnp.stack([leaf, leaf], axis=1)
    resets = jnp.stack([resets, ~resets], axis=1)
    after, _ = jax.jit(both.update)(state, params, (double(xs), resets), double(ys))
    np.testing.assert_allclose(after.streams.learned.jacobian[1], expected, rtol=1e-10)


def test_streams_begin_with_one_synthesiser():
    model = MODELS["gru"]()
    params, hidden = jax.jit(model.init)(jax.random.key(0))
    for axis_name in ("streams", None):
        estimator = batched(dni(model, synthesiser=readouts.linear(FEATURES, HIDDEN), axis_name=axis_name), 3)
        state = jax.jit(estimator.init)(params, hidden, key=jax.random.key(1))
        drawn = state.streams.learned.synthesiser["W"]
        assert bool(jnp.all(drawn == drawn[:1])) == (axis_name is not None)


def test_streams_share_what_is_learned_where_only_some_begin_anew():
    model = fixed_start(MODELS["gru"]())
    params, hidden = jax.jit(model.init)(jax.random.key(0))
    xs, ys = stream(model, 3 * 6)
    xs, ys = jax.tree.map(lambda leaf: leaf.reshape(6, 3, *leaf.shape[1:]), (xs, ys))
    xs = xs[0], jnp.zeros((6, 3), bool).at[0, 0].set(True).at[4, 1].set(True)
    for axis_name in ("streams", None):
        options = {"jacobian": "learned", "inner_optimizer": optax.adam(0.1), "axis_name": axis_name}
        with jax.numpy_dtype_promotion("standard"):
            estimator = batched(dni(model, **options), 3)
            state = jax.jit(estimator.init)(params, hidden, key=jax.random.key(1))
            state, _ = jax.jit(estimator.update)(state, params, xs, ys)
        # the lessons are each stream's own
        learned = jax.tree.leaves(state.streams.learned._replace(lesson=None))
        same = all(np.allclose(leaf, leaf[:1], rtol=1e-12, atol=0) for leaf in learned)
        assert same == (axis_name is not None)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"copy_every": 0}, ValueError, "copy_every must be at least 1"),
        ({"jacobian": "none"}, ValueError, 'jacobian must be "exact" or "learned"'),
        ({"inner_optimizer": 0.1}, TypeError, "inner_optimizer must be an optax GradientTransformation"),
        (
            {"jacobian": "learned", "jacobian_optimizer": 0.1},
            TypeError,
            "jacobian_optimizer must be an optax",
        ),
        ({"jacobian_optimizer": optax.sgd(0.1)}, ValueError, 'it needs jacobian="learned"'),
        ({"synthesiser": readouts.linear(FEATURES, HIDDEN + 1)}, ValueError, r"like the hidden state"),
        ({"synthesiser": readouts.linear(FEATURES + 1, HIDDEN)}, ValueError, r"fails on features \[7\]"),
        ({"synthesiser": 3}, TypeError, r"synthesiser must be a pair of functions \(init, apply\), got 3"),
        ({"synthesiser": (lambda: 0, lambda S, f: f)}, ValueError, "the synthesiser's init fails on a key"),
        ({"features": 3}, TypeError, r"features must be a function \(hidden, y\)"),
        ({"features": lambda h: h}, ValueError, r"features fail on \(hidden, y\)"),
        ({"squash": "no"}, TypeError, "squash must be a bool, got 'no'"),
        ({"features": lambda h, y: (h, y)}, ValueError, r"features must return a vector \[m\]"),
        ({"feedback": "random"}, TypeError, "feedback must be"),
    ],
)
def test_bad_options_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        dni(MODELS["gru"](), **options)


def test_labels_that_are_no_numbers_need_features():
    base = MODELS["gru"]()
    model = base._replace(
        example=(jnp.zeros(INPUTS), jnp.zeros((), jnp.int32)),
        loss=lambda params, h, y: (-jax.nn.log_softmax(base.loss(params, h, jnp.zeros(OUTPUTS))[1])[y], y),
    )
    with pytest.raises(ValueError, match="y has a leaf of dtype int32; give features="):
        dni(model)
    one_hot = lambda hidden, y: jnp.concatenate([hidden, jax.nn.one_hot(y, OUTPUTS), jnp.ones(1)])
    assert dni(model, features=one_hot)
