"""TD prediction: exact estimators follow the TD error times the gradient of the value, or of its trace."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import online_grads as og
from online_grads import cells, experiment, readouts
from online_grads.config import parse
from online_grads.tables import ConfigError
from online_grads.td import TdTarget, eligibility_traces, td_learner, td_model, value_model

T, INPUTS, HIDDEN, DISCOUNT = 12, 3, 4, 0.8
NUMBER, X = jnp.zeros(()), jnp.zeros(INPUTS)
EXAMPLE = (X, TdTarget(NUMBER, X, NUMBER))


def lstm(discount=DISCOUNT):
    return td_model(
        cells.lstm(INPUTS, HIDDEN), readouts.linear(HIDDEN, 1), discount=discount, example=EXAMPLE
    )


@pytest.fixture(scope="module")
def case():
    """(parameters, hidden state, x_1 ... x_{T+1}, c_2 ... c_{T+1})."""
    params, hidden = jax.jit(lstm().init)(jax.random.key(0))
    draw = np.random.default_rng(0).normal
    return params, hidden, jnp.asarray(draw(size=(T + 1, INPUTS))), jnp.asarray(draw(size=T))


@jax.jit
def values(params, hidden, xs):
    """v(h_1) ... v(h_{T+1}), without the model's loss."""
    cell, readout = cells.lstm(INPUTS, HIDDEN), readouts.linear(HIDDEN, 1)

    def step(h, x):
        h = cell.step(params["cell"], h, x)
        return h, readout.apply(params["readout"], cell.output(h))[0]

    return jax.lax.scan(step, hidden, xs)[1]


def errors(v, cumulants):
    return cumulants + DISCOUNT * v[1:] - v[:-1]


@jax.jit
def semi_gradient(params, hidden, xs, cumulants):
    """-δ dv/dθ, mean over the steps."""
    delta = errors(values(params, hidden, xs), cumulants)
    jacobian = jax.jacrev(values)(params, hidden, xs)
    return jax.tree.map(lambda rows: -jnp.tensordot(delta, rows[:-1], 1) / T, jacobian)


@jax.jit
def full_gradient(params, hidden, xs, cumulants):
    return jax.grad(lambda params: jnp.mean(errors(values(params, hidden, xs), cumulants) ** 2) / 2)(params)


def online(estimator, case, window=1):
    params, hidden, xs, cumulants = case
    # the return is not read: NaN would show
    ys = TdTarget(cumulants, xs[1:], jnp.full(T, jnp.nan))
    follow = lambda *args: og.gradient(estimator, *args, key=jax.random.key(1), window=window)
    return jax.jit(follow)(params, hidden, xs[:-1], ys)


def apart(left, right):
    pairs = zip(*map(jax.tree.leaves, jax.device_get((left, right))), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


@pytest.mark.parametrize(("estimator", "window"), [(og.rtrl, 1), (og.rtrl, 4), (og.tbptt, T)])
def test_an_exact_estimator_follows_the_semi_gradient(case, estimator, window):
    assert apart(online(estimator(lstm()), case, window), semi_gradient(*case)) < 1e-12


def test_neither_the_full_gradient_nor_a_short_past_is_the_semi_gradient(case):
    expected = semi_gradient(*case)
    assert apart(full_gradient(*case), expected) > 1e-3
    assert apart(online(og.tbptt(lstm()), case, window=1), expected) > 1e-3


def test_the_loss_is_half_the_squared_error_and_the_output_is_the_value(case):
    params, hidden, xs, cumulants = case
    v, delta = values(params, hidden, xs), errors(values(params, hidden, xs), cumulants)
    model = lstm()
    h = model.transition(params, hidden, xs[0])
    loss, prediction = model.loss(params, h, TdTarget(cumulants[0], xs[1], NUMBER))
    np.testing.assert_allclose((loss, prediction), (delta[0] ** 2 / 2, v[0]), rtol=1e-12)


def test_the_target_has_no_gradient(case):
    params, hidden, xs, cumulants = case
    loss = lambda params, h, y: lstm().loss(params, h, y)[0]
    y = TdTarget(cumulants[0], xs[1], NUMBER)
    of_params, of_y = jax.grad(loss, (0, 2))(params, hidden, y)
    assert apart(of_params["cell"], jax.tree.map(jnp.zeros_like, params["cell"])) == 0
    assert apart(of_params["readout"], jax.tree.map(jnp.zeros_like, params["readout"])) > 0
    assert apart(of_y, jax.tree.map(jnp.zeros_like, y)) == 0


def test_a_traced_discount(case):
    params, hidden, xs, cumulants = case
    y = TdTarget(cumulants[0], xs[1], NUMBER)
    traced = jax.jit(lambda discount: lstm(discount).loss(params, hidden, y)[0])
    assert traced(DISCOUNT) == pytest.approx(float(lstm().loss(params, hidden, y)[0]), rel=1e-12)
    assert traced(0.1) != traced(DISCOUNT)


def test_bad_arguments():
    cell, readout = cells.lstm(INPUTS, HIDDEN), readouts.linear(HIDDEN, 1)
    make = lambda readout=readout, **given: td_model(
        cell, readout, **{"discount": 0.9, "example": EXAMPLE} | given
    )
    with pytest.raises(ValueError, match=r"discount must be in \[0, 1\), got 1"):
        make(discount=1)
    with pytest.raises(TypeError, match="discount must be a number, got 'a'"):
        make(discount="a")
    with pytest.raises(TypeError, match="the y of example must be a TdTarget, got ShapeDtypeStruct"):
        make(example=(X, X))
    with pytest.raises(ValueError, match=r"cumulant must be a scalar, got shape \(3,\)"):
        make(example=(X, TdTarget(X, X, NUMBER)))
    with pytest.raises(ValueError, match=r"ratio must be a scalar, got shape \(3,\)"):
        make(example=(X, EXAMPLE[1]._replace(ratio=X)))
    with pytest.raises(TypeError, match="begins must be a bool, got float64"):
        make(example=(X, EXAMPLE[1]._replace(begins=NUMBER)))
    with pytest.raises(ValueError, match="the x of y must be like x: expected"):
        make(example=(X, TdTarget(NUMBER, jnp.zeros(2), NUMBER)))
    with pytest.raises(ValueError, match=r"the readout must have one output, got shape \(2,\)"):
        make(readouts.linear(HIDDEN, 2))
    with pytest.raises(ValueError, match="the readout does not fit the cell"):
        make(readouts.linear(HIDDEN + 1, 1))


# ---- TD(λ), on a stream of episodes with their own discounts and policy ratios

LAMBDA = 0.7
ENDS = (4, 9, T)  # where episodes end: one terminates, two are cut off
START = jnp.linspace(-0.5, 0.5, HIDDEN)  # h₀
FULL = EXAMPLE[1]._replace(discount=NUMBER, ratio=NUMBER, begins=jnp.zeros((), bool))


def episodic(make, example=(X, FULL)):
    model = make(
        cells.vanilla_rnn(INPUTS, HIDDEN), readouts.linear(HIDDEN, 1), discount=DISCOUNT, example=example
    )
    return og.with_resets(model, START)


@pytest.fixture(scope="module")
def episodes():
    """(parameters, (xs, ys))."""
    params, _ = jax.jit(episodic(value_model).init)(jax.random.key(3))
    rng = np.random.default_rng(3)
    x = rng.normal(size=(T, INPUTS))
    begins = np.isin(np.arange(T), (0, *ENDS[:-1]))
    last = np.isin(np.arange(T), np.array(ENDS) - 1)
    # the end of an episode looks ahead at another observation than the stream goes on with
    ahead = np.where(last[:, None], rng.normal(size=(T, INPUTS)), np.roll(x, -1, axis=0))
    discount, ratio = rng.uniform(0.5, 1.0, T), rng.uniform(0.3, 2.0, T)
    discount[ENDS[0] - 1] = 0
    ys = TdTarget(rng.normal(size=T), ahead, np.full(T, np.nan), discount, ratio, begins)
    return params, jax.tree.map(jnp.asarray, ((x, begins), ys))


def forward_view(params, xs, ys, trace_decay):
    """Σ_t ρ_t (G^λ_t − v_t) ∂v_t/∂θ, from the definition of the λ-return, episode by episode."""
    cell, readout = cells.vanilla_rnn(INPUTS, HIDDEN), readouts.linear(HIDDEN, 1)

    def predictions(params):
        """v(h_t) and v(h') at every step."""
        step = lambda h, x: cell.step(params["cell"], h, x)
        value = lambda h: readout.apply(params["readout"], cell.output(h))[0]
        h, rows = START, []
        for t in range(T):
            h = step(jnp.where(xs[1][t], START, h), xs[0][t])
            rows.append((value(h), value(step(h, ys.x[t]))))
        return tuple(map(jnp.stack, zip(*rows, strict=True)))

    v, following = map(np.asarray, predictions(params))
    gap = np.zeros(T)  # G^λ_t − v_t
    for t in reversed(range(T)):
        g = following[t]
        if t + 1 not in ENDS:
            to_come = ys.ratio[t + 1] * gap[t + 1] + v[t + 1]
            g = (1 - trace_decay) * following[t] + trace_decay * to_come
        gap[t] = ys.cumulant[t] + ys.discount[t] * g - v[t]
    jacobian = jax.jit(jax.jacrev(lambda params: predictions(params)[0]))(params)
    return jax.tree.map(lambda rows: jnp.tensordot(jnp.asarray(ys.ratio * gap), rows, 1), jacobian)


# adds up what reaches it and moves nothing
SUM = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda g, total, params=None: (jax.tree.map(jnp.zeros_like, g), jax.tree.map(jnp.add, g, total)),
)


def backward_view(estimator):
    """(params, xs, ys, λ) -> Σ_t δ_t e_t."""

    @jax.jit
    def follow(params, xs, ys, trace_decay):
        online = td_learner(estimator, SUM, trace_decay=trace_decay)
        state = online.init(params, START, key=jax.random.key(1))
        state, metrics = og.scan(online, state, xs, ys)
        return jax.tree.map(jnp.negative, state.optimizer[1]), metrics.outputs

    return lambda *args: follow(*args)[0]


@pytest.fixture(scope="module")
def exact_view():
    return backward_view(og.rtrl(episodic(value_model)))


def test_traces_give_the_forward_view_of_the_lambda_return(episodes, exact_view):
    params, (xs, ys) = episodes
    expected = forward_view(params, xs, ys, LAMBDA)
    assert apart(exact_view(params, xs, ys, LAMBDA), expected) < 1e-10
    cut = ys.discount.at[ENDS[1] - 1].set(0.0)
    for wrong in (
        ys._replace(begins=jnp.zeros(T, bool)),
        ys._replace(discount=cut),  # a truncation for a termination
        ys._replace(ratio=jnp.ones(T)),
        ys._replace(x=jnp.roll(xs[0], -1, axis=0)),  # looking ahead into the next episode
    ):
        assert apart(exact_view(params, xs, wrong, LAMBDA), expected) > 1e-3
    assert apart(exact_view(params, xs, ys, 0.0), expected) > 1e-3
    # a termination ends the trace by itself, and what comes after a truncation may follow anything
    begins = ys.begins.at[ENDS[0]].set(False)
    assert apart(exact_view(params, xs, ys._replace(begins=begins), LAMBDA), expected) < 1e-10


def test_what_y_does_not_tell_is_the_model_s_discount_one_and_never(episodes, exact_view):
    params, (xs, ys) = episodes
    bare = TdTarget(ys.cumulant, ys.x, ys.value)
    told = bare._replace(discount=jnp.full(T, DISCOUNT), ratio=jnp.ones(T), begins=jnp.zeros(T, bool))
    short = backward_view(og.rtrl(episodic(value_model, EXAMPLE)))(params, xs, bare, LAMBDA)
    assert apart(short, exact_view(params, xs, told, LAMBDA)) < 1e-12
    assert apart(short, exact_view(params, xs, ys, LAMBDA)) > 1e-3


def test_without_a_trace_it_is_the_semi_gradient(episodes, exact_view):
    params, (xs, ys) = episodes
    loss = og.rtrl(episodic(td_model))
    mean = jax.jit(lambda *args: og.gradient(loss, *args, key=jax.random.key(1)))(params, START, xs, ys)
    expected = jax.tree.map(lambda g: -T * g, mean)
    assert apart(exact_view(params, xs, ys, 0.0), expected) < 1e-10
    assert apart(exact_view(params, xs, ys, 0.1), expected) > 1e-3


@pytest.mark.parametrize("make", [lambda m: og.tbptt(m, history=T), lambda m: og.snap(m, order=HIDDEN)])
def test_other_exact_estimators(episodes, exact_view, make):
    params, (xs, ys) = episodes
    found = backward_view(make(episodic(value_model)))(params, xs, ys, LAMBDA)
    assert apart(found, exact_view(params, xs, ys, LAMBDA)) < 1e-10


def test_noisy_estimators(episodes, exact_view):
    params, (xs, ys) = episodes
    expected = exact_view(params, xs, ys, LAMBDA)
    uoro = backward_view(og.uoro(episodic(value_model)))(params, xs, ys, LAMBDA)
    # where credit goes through no state there is no noise
    assert apart(uoro["readout"], expected["readout"]) < 1e-10
    assert apart(uoro["cell"], expected["cell"]) > 1e-3
    es = backward_view(og.es(episodic(value_model), sigma=1e-3, particles=512))(params, xs, ys, LAMBDA)
    flat = lambda tree: jax.flatten_util.ravel_pytree(tree["readout"])[0]
    a, b = flat(es), flat(expected)
    assert a @ b / jnp.linalg.norm(a) / jnp.linalg.norm(b) > 0.95


def test_any_optimizer_compiled_over_seeds_and_trace_decays(episodes):
    _, (xs, ys) = episodes
    model = episodic(value_model)

    def learned(key, trace_decay):
        online = td_learner(og.snap(model), optax.adam(0.01), trace_decay=trace_decay)
        state, metrics = og.scan(online, online.init(*model.init(key), key=key), xs, ys)
        return state.params, metrics.outputs.value

    keys, decays = jax.random.split(jax.random.key(5), 2), jnp.array([0.0, 0.9])
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam promotes its count
        every = og.sweep(learned, {"key": keys, "trace_decay": decays})
        one = jax.jit(lambda key: learned(key, 0.9))(keys[1])  # not traced
    assert apart(jax.tree.map(lambda leaf: leaf[1, 1], every), one) < 1e-12
    assert apart(jax.tree.map(lambda leaf: leaf[1, 0], every), one) > 1e-3


def test_a_trace_that_is_not_finite_ends_where_an_episode_begins(episodes):
    traces, told = eligibility_traces(LAMBDA), og.td.TdOutputs(*jnp.ones((4, 1)), jnp.ones(1, bool))
    state = traces.init(jnp.ones(2))._replace(traces=jnp.full(2, jnp.inf), discount=jnp.ones(()))
    emitted, _ = traces.update(jnp.ones(2), state, outputs=told)
    np.testing.assert_array_equal(emitted, -jnp.ones(2))
    after, _ = traces.update(jnp.ones(2), state, outputs=told._replace(begins=jnp.zeros(1, bool)))
    assert jnp.isinf(after).all()


def test_traces_refuse_what_they_cannot_use(episodes):
    params, (xs, ys) = episodes
    with pytest.raises(ValueError, match=r"trace_decay must be in \[0, 1\], got 1.5"):
        eligibility_traces(1.5)
    with pytest.raises(TypeError, match="trace_decay must be a number, got 'a'"):
        eligibility_traces("a")
    traces = eligibility_traces(1.0)
    with pytest.raises(ValueError, match="needs what the loss of value_model returned"):
        traces.update(params, traces.init(params))
    with pytest.raises(TypeError, match=r"TdOutputs of value_model .* \(td_model has no use for traces"):
        traces.update(params, traces.init(params), outputs=np.zeros(1))
    model = episodic(value_model)
    online = og.learner(og.tbptt(model), optax.chain(traces, optax.sgd(0.1)))
    state = jax.eval_shape(lambda key: online.init(*model.init(key), key=key), jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"windows of one step and one stream, got TD errors of shape \(2,\)"
    ):
        jax.eval_shape(lambda state: og.scan(online, state, xs, ys, window=2), state)
    # an optimizer that wraps another one and does not hand on what it is told
    online = og.learner(og.tbptt(model), og.fptt(optax.chain(traces, optax.sgd(0.1)), alpha=0.5))
    state = jax.eval_shape(lambda key: online.init(*model.init(key), key=key), jax.random.key(0))
    with pytest.raises(ValueError, match="what wraps the traces must pass `outputs` on"):
        jax.eval_shape(lambda state: og.scan(online, state, xs, ys), state)


def test_a_learner_with_traces_refuses_what_has_none_to_give(episodes):
    _, (xs, ys) = episodes

    def shape(estimator, optimizer, *streams):
        online = td_learner(estimator, optimizer, trace_decay=LAMBDA)
        row = lambda leaf: jnp.broadcast_to(leaf[0], (1, *streams, *leaf.shape[1:]))

        def updated(key):
            params, hidden = episodic(value_model).init(key)
            return online.update(online.init(params, hidden, key=key), *jax.tree.map(row, (xs, ys)))

        return jax.eval_shape(updated, jax.random.key(0))[1].outputs.error.shape

    model, sgd = episodic(value_model), optax.sgd(0.1)
    assert shape(og.tbptt(model), sgd) == (1,)
    # the traces are outside of what does not hand on what it is told
    with jax.numpy_dtype_promotion("standard"):
        assert shape(og.tbptt(model), optax.MultiSteps(sgd, 2)) == (1,)
    with pytest.raises(ValueError, match="the estimator emits its gradients late"):
        td_learner(og.fbptt(model, horizon=2), sgd, trace_decay=LAMBDA)
    with pytest.raises(TypeError, match="optimizer must be an optax GradientTransformation, got 3"):
        td_learner(og.tbptt(model), 3, trace_decay=LAMBDA)
    with pytest.raises(TypeError, match="td_model has no use for traces"):
        shape(og.tbptt(episodic(td_model)), sgd)
    with pytest.raises(ValueError, match=r"got TD errors of shape \(1, 2\); for several streams jax.vmap a"):
        shape(og.batched(og.tbptt(model), 2), sgd, 2)


# ---- from a config


def trained(trace_decay=None, **estimator):
    task = {"name": "trace_conditioning", "isi": [2, 3], "iti": [4, 5], "cs_length": 1, "distractors": 0}
    tables = {
        "task": task if trace_decay is None else task | {"trace_decay": trace_decay},
        "model": {"cell": "vanilla_rnn", "hidden": 2},
        "run": {"steps": 60, "precision": "float64"},
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "estimator": [{"name": "tbptt", **estimator}],
    }
    return experiment.train(parse(tables)).results[0].loss


def test_a_task_learns_by_traces():
    plain = trained()
    np.testing.assert_allclose(trained(0.0), plain, rtol=1e-9)
    assert np.abs(trained(0.9) - plain).max() > 1e-3


def test_a_task_with_traces_refuses_windows_and_late_gradients():
    with pytest.raises(
        ConfigError, match=r"estimator.0 \(tbptt\): eligibility_traces needs windows of one step"
    ):
        trained(0.9, window=2)
    with pytest.raises(ConfigError, match=r"estimator.0 \(fbptt\): its gradients come late \(horizon − 1\)"):
        trained(0.9, name="fbptt", horizon=2)
    with pytest.raises(ConfigError, match=r"config: task: trace_decay must be in \[0, 1\], got 2"):
        trained(2)
