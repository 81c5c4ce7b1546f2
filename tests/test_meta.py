"""Learners as recurrences: online hypergradients against differentiation through the whole training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import online_grads as og
from online_grads import cells, losses, meta, readouts

T, INPUTS, UNITS, COLUMNS, ALPHA = 8, 2, 3, 3, 1e-2
NUMBER = jnp.zeros(())
EXAMPLE = (jnp.zeros(INPUTS), NUMBER)


def apart(left, right):
    """Relative distance of two pytrees."""
    vector = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    return np.linalg.norm(vector(left) - vector(right)) / np.linalg.norm(vector(right))


def online(make, model, params, hidden, stream, window=1):
    follow = lambda *args: og.gradient(make(model), *args, key=jax.random.key(1), window=window)
    return jax.jit(follow)(params, hidden, *stream)


def start(model):
    """Where a training begins: (θ, hidden state)."""
    return jax.jit(model.init)(jax.random.key(0))


@functools.cache
def examples(length=T, inputs=INPUTS):
    keys = jax.random.split(jax.random.key(2), 2)
    return jax.random.normal(keys[0], (length, inputs)), jax.random.normal(keys[1], (length,))


# ---- a nonlinear learner and its hyperparameters


def network(phi, example):
    x, target = example
    error = phi["out"] @ jnp.tanh(phi["W"] @ x + phi["bias"]) - target
    return error**2 / 2


def penalised(theta, phi, example):
    penalty = theta.get("penalty", NUMBER) * jnp.sum(phi["W"] ** 2)
    return network(phi, example) + penalty, None


def plain(theta, phi, example):
    return network(phi, example), None


def weights(key):
    keys = jax.random.split(key, 3)
    shapes = {"W": (UNITS, INPUTS), "bias": (UNITS,), "out": (UNITS,)}
    return {name: jax.random.normal(k, shape) for k, (name, shape) in zip(keys, shapes.items(), strict=True)}


# name -> (θ -> optimizer, θ)
OPTIMIZERS = {
    "sgd": (lambda theta: optax.sgd(theta["rate"]), {"rate": 0.2, "penalty": 0.1}),
    "momentum": (lambda theta: optax.sgd(theta["rate"], theta["momentum"]), {"rate": 0.1, "momentum": 0.7}),
    "adam": (lambda theta: optax.adam(theta["rate"], theta["b1"]), {"rate": 0.1, "b1": 0.8}),
}


def learning(optimizer, theta):
    init = lambda key: (jax.tree.map(jnp.asarray, theta), weights(key))
    return meta.as_model(penalised, optimizer, init=init, example=EXAMPLE, meta_loss=plain)


def unrolled(optimizer, stream):
    """Mean meta-loss of a training, as a function of θ and φ_0."""

    def training(theta, phi):
        def step(carry, pair):
            phi, state = carry
            grads = jax.grad(lambda phi: penalised(theta, phi, pair[0])[0])(phi)
            updates, state = optimizer(theta).update(grads, state, phi)
            phi = jax.tree.map(jnp.add, phi, updates)
            return (phi, state), network(phi, pair[1])

        return jnp.mean(jax.lax.scan(step, (phi, optimizer(theta).init(phi)), stream)[1])

    return training


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_rtrl_is_the_gradient_through_the_whole_training(name):
    optimizer, theta = OPTIMIZERS[name]
    stream = meta.pairs(examples(T + 1))
    # optax's Adam promotes its count
    with jax.numpy_dtype_promotion("standard"):
        model = learning(optimizer, theta)
        params, hidden = start(model)
        expected = jax.jit(jax.grad(unrolled(optimizer, stream)))(params, hidden.params)
        assert apart(online(og.rtrl, model, params, hidden, stream), expected) < 1e-10
        if name == "sgd":
            assert apart(online(og.tbptt, model, params, hidden, stream), expected) > 1e-2
            # the penalty belongs to the training alone
            whole = model._replace(loss=lambda theta, hidden, y: penalised(theta, hidden.params, y))
            assert apart(online(og.rtrl, whole, params, hidden, stream), expected) > 1e-2


def test_a_learned_start_of_every_episode():
    optimizer, episode = lambda theta: optax.sgd(theta["rate"], 0.5), T // 2
    init = lambda key: ({"rate": jnp.array(0.1), "start": weights(key)}, weights(key))
    model = og.with_resets(
        meta.as_model(plain, optimizer, init=init, example=EXAMPLE),
        lambda theta: meta.begin(optimizer(theta), theta["start"]),
    )
    params, hidden = start(model)
    xs, ys = meta.pairs(examples(T + 1))

    def episodes(theta):
        def step(carry, pair):
            phi, trace = carry
            trace = jax.tree.map(lambda m, g: 0.5 * m + g, trace, jax.grad(network)(phi, pair[0]))
            phi = jax.tree.map(lambda p, m: p - theta["rate"] * m, phi, trace)
            return (phi, trace), network(phi, pair[1])

        begun = theta["start"], jax.tree.map(jnp.zeros_like, theta["start"])
        halves = jax.tree.map(lambda rows: rows.reshape(2, episode, *rows.shape[1:]), (xs, ys))
        return jnp.mean(jax.vmap(lambda half: jax.lax.scan(step, begun, half)[1])(halves))

    reset = jnp.arange(T) % episode == 0
    found = online(og.rtrl, model, params, hidden, ((xs, reset), ys))
    assert apart(found, jax.jit(jax.grad(episodes))(params)) < 1e-10


def test_uoro_serves_many_hyperparameters():
    rates = lambda theta: meta.per_parameter(jax.tree.map(jnp.exp, theta))
    init = lambda key: (jax.tree.map(lambda w: jnp.full_like(w, -2), weights(key)), weights(key))
    model = meta.as_model(plain, rates, init=init, example=EXAMPLE)
    params, hidden = start(model)
    stream = meta.pairs(examples(T + 1))
    noisy = lambda key: og.gradient(og.uoro(model), params, hidden, *stream, key=key)
    drawn = jax.jit(jax.vmap(noisy))(jax.random.split(jax.random.key(3), 2000))
    exact = online(og.rtrl, model, params, hidden, stream)
    assert apart(jax.tree.map(lambda g: g.mean(0), drawn), exact) < 0.1
    assert apart(jax.tree.map(lambda g: g[0], drawn), exact) > 0.1


# ---- one step size per weight of a linear learner


def linear(theta, w, example):
    x, target = example
    return losses.squared_error(w @ x, target), None


def lms(inputs):
    init = lambda key: (jnp.full(inputs, jnp.log(0.05)), jnp.zeros(inputs))
    rates = lambda beta: meta.per_parameter(jnp.exp(beta))
    return meta.as_model(linear, rates, init=init, example=(jnp.zeros(inputs), NUMBER))


def idbd(xs, targets, meta_rate):
    """Sutton's recursion without its clip: β, and −dℓ/dβ as the mean over the steps after the first."""
    beta, w, H = np.full((3, xs.shape[1]), [[np.log(0.05)], [0.0], [0.0]])
    slope = np.zeros_like(beta)
    for x, target in zip(xs, targets, strict=True):
        delta = target - w @ x
        slope += delta * x * H
        beta = beta + meta_rate * delta * x * H
        alpha = np.exp(beta)
        w = w + alpha * delta * x
        H = H * (1 - alpha * x**2) + alpha * delta * x
    return beta, slope / (len(xs) - 1)


def test_snap_is_idbd():
    drawn = examples(60, inputs=4)
    model, stream = lms(4), meta.pairs(drawn)
    params, hidden = start(model)
    _, slope = idbd(*map(np.asarray, drawn), 0.0)
    assert apart(online(og.snap, model, params, hidden, stream), -slope) < 1e-12
    # what a step size does to other weights is lost
    assert apart(online(og.rtrl, model, params, hidden, stream), -slope) > 1e-2


def test_snap_learns_as_idbd_does():
    drawn, rate = examples(60, inputs=4), 0.02
    beta, _ = idbd(*map(np.asarray, drawn), rate)

    def learned(make):
        learner = og.learner(make(lms(4)), optax.sgd(rate))
        state = learner.init(*lms(4).init(jax.random.key(0)), key=jax.random.key(1))
        return jax.jit(lambda state: og.scan(learner, state, *meta.pairs(drawn)))(state)[0].params

    moved = lambda beta: beta - np.log(0.05)
    # H counts what is past in units of the step size that was, the influence in units of the present one
    assert apart(moved(learned(og.snap)), moved(beta)) < 0.01
    assert apart(moved(learned(og.rtrl)), moved(beta)) > 0.1


def test_a_bias_joins_the_weights_and_a_constant_input_does_not():
    def carried(loss, phi):
        rates = lambda beta: meta.per_parameter(jax.tree.map(jnp.exp, beta))
        init = lambda key: (jax.tree.map(jnp.zeros_like, phi), phi)
        model = meta.as_model(loss, rates, init=init, example=EXAMPLE)
        state = og.snap(model).init(*model.init(jax.random.key(0)), key=jax.random.key(1))
        return sum(leaf.size for leaf in jax.tree.leaves(state.influence))

    def biased(theta, phi, example):
        return losses.squared_error(phi["w"] @ example[0] + phi["b"], example[1]), None

    def constant(theta, w, example):
        return linear(theta, w, (jnp.append(example[0], 1.0), example[1]))

    entries = INPUTS + 1
    assert carried(biased, {"w": jnp.zeros(INPUTS), "b": NUMBER}) == entries**2
    assert carried(constant, jnp.zeros(entries)) == entries


# ---- a representation, through a readout that learns


def representation(columns, carry):
    """Columns that add up, or that forget: without a carry their state is read once."""
    cell = cells.columnar_rnn(INPUTS, columns, width=2)
    if not carry:
        adding = cell.step
        cell = cell._replace(step=lambda theta, h, x: adding(theta, h, x) - h)
    readout = readouts.linear(columns, 1, bias=False)
    example = (jnp.zeros(INPUTS), jnp.zeros(1))
    return meta.online_readout(cell, readout, losses.squared_error, optax.sgd(ALPHA), example=example)


def column(theta, h, x, carry):
    """One column, by its equation."""
    relu = lambda z: jnp.maximum(z, 0)
    below = relu(theta["fc1"]["W"] @ x + theta["fc1"]["bias"])
    features = relu(theta["fc2"]["W"] @ below + theta["fc2"]["bias"])
    return carry * h + jnp.tanh(theta["own"] @ features + theta["bias"])


def per_column(theta, v, xs, ys, carry):
    """The reference's recursion: every parameter's influence TH on its own h and TW on its own v."""
    columns = jax.vmap(jax.value_and_grad(column, (0, 1)), (0, 0, None, None))
    sums = lambda *terms: jax.tree.map(lambda *leaves: sum(leaves), *terms)
    scaled = lambda scale, tree: jax.tree.map(lambda leaf: jax.vmap(jnp.multiply)(scale, leaf), tree)

    def step(state, xy):
        h, v, TH, TW = state
        h, (immediate, kept) = columns(theta, h, xy[0], carry)
        TH = sums(immediate, scaled(kept, TH))
        delta = xy[1] - v @ h
        of_prediction = sums(scaled(v, TH), scaled(h, TW))
        TW = sums(TW, scaled(ALPHA * delta + 0 * h, TH), scaled(-ALPHA * h, of_prediction))
        return (h, v + ALPHA * delta * h, TH, TW), scaled(-delta + 0 * h, of_prediction)

    zeros = jax.tree.map(jnp.zeros_like, theta)
    _, slopes = jax.lax.scan(step, (jnp.zeros_like(v), v, zeros, zeros), (xs, ys))
    return jax.tree.map(lambda rows: rows.mean(0), slopes)


def trained_through(theta, v, xs, ys, carry):
    """Mean loss of the stream while v learns."""

    def step(state, xy):
        h, v = state
        h = jax.vmap(column, (0, 0, None, None))(theta, h, xy[0], carry)
        delta = xy[1] - v @ h
        return (h, v + ALPHA * delta * h), delta**2 / 2

    return jnp.mean(jax.lax.scan(step, (jnp.zeros_like(v), v), (xs, ys))[1])


@pytest.mark.parametrize("carry", [1.0, 0.0])
def test_snap_on_columns_is_the_recursion_per_column(carry):
    xs, ys = examples(20)
    model = representation(COLUMNS, carry)
    params, hidden = model.init(jax.random.key(5))
    given, stream = (params, hidden.readout["W"][0], xs, ys, carry), meta.taught(xs, ys[:, None])
    snap = online(og.snap, model, params, hidden, stream)
    assert apart(snap, jax.jit(per_column)(*given)) < 1e-12
    exact = jax.jit(jax.grad(trained_through))(*given)
    assert apart(online(og.rtrl, model, params, hidden, stream), exact) < 1e-12
    # columns meet in the common error alone
    assert apart(snap, exact) > 1e-4
    if not carry:
        assert apart(snap, exact) < 1e-2


def test_snap_is_exact_on_one_column():
    xs, ys = examples(20)
    model = representation(1, carry=True)
    params, hidden = model.init(jax.random.key(5))
    snap = online(og.snap, model, params, hidden, meta.taught(xs, ys[:, None]))
    exact = jax.jit(jax.grad(trained_through))(params, hidden.readout["W"][0], xs, ys, 1.0)
    assert apart(snap, exact) < 1e-12


# ---- any optax optimizer


def test_an_optimizer_sees_what_it_trains_and_its_numbers_become_arrays():
    counting = optax.GradientTransformation(lambda phi: 0, lambda g, count, phi: (g, 1))
    decaying = lambda theta: optax.chain(counting, optax.add_decayed_weights(theta), optax.scale(-0.5))
    init = lambda key: (jnp.array(0.1), jnp.ones(INPUTS))
    model = meta.as_model(linear, decaying, init=init, example=EXAMPLE)
    theta, hidden = model.init(jax.random.key(0))
    moved = model.transition(theta, hidden, EXAMPLE)  # no gradient
    np.testing.assert_allclose(moved.params, 0.95 * np.ones(INPUTS), rtol=1e-12)
    for count, state in enumerate((hidden, moved)):
        (number,) = jax.tree.leaves(state.optimizer)
        assert isinstance(number, jax.Array)
        assert number == count


# ---- what does not fit


def test_bad_arguments():
    make = lambda **given: meta.as_model(
        **{"loss": linear, "optimizer": optax.sgd, "init": lambda key: (0.1, jnp.zeros(2))} | given,
        example=EXAMPLE,
    )
    make()
    with pytest.raises(TypeError, match="optimizer must be a function of θ that makes an optax optimizer"):
        make(optimizer=optax.sgd(0.1))
    with pytest.raises(ValueError, match="optimizer must be an optax GradientTransformation, got 3"):
        make(optimizer=lambda theta: 3)
    with pytest.raises(
        ValueError, match=r"optimizer fails on a traced θ .*: it needs the value of a traced .*do$"
    ):
        make(optimizer=lambda theta: optax.sgd(float(theta)))
    for drawn in (jnp.zeros(()), (0.1, 0.2, 0.3)):
        with pytest.raises(TypeError, match=r"init must return a pair \(θ, φ\), got "):
            make(init=lambda key, drawn=drawn: drawn)
    with pytest.raises(TypeError, match="θ must be floating, got int"):
        make(init=lambda key: (1, jnp.zeros(2)))
    with pytest.raises(TypeError, match=r"φ\['w'\] must be floating, got int"):
        make(init=lambda key: (0.1, {"w": jnp.zeros(2, int)}))
    with pytest.raises(ValueError, match=r"loss fails on θ, φ and an example: .* the same shape"):
        make(init=lambda key: (0.1, jnp.zeros((2, 2))))
    with pytest.raises(TypeError, match=r"^loss must return a pair \(scalar, outputs\)"):
        make(loss=lambda theta, w, example: w[0])
    with pytest.raises(TypeError, match="what meta_loss returns first must be a floating scalar"):
        make(meta_loss=lambda theta, w, example: (w, w))
    with pytest.raises(TypeError, match=r"what loss returns first must be a floating scalar, got .*int"):
        make(loss=lambda theta, w, example: (jnp.sum(w).astype(int), w))
    with pytest.raises(
        ValueError, match=r"a step of training fails: the rates .* do not fit what is trained"
    ):
        make(optimizer=lambda theta: meta.per_parameter([theta]))
    with pytest.raises(
        ValueError, match=r"a step of training turns the shapes .*int\d+\[\]'.* into .*\[2\]'"
    ):
        make(optimizer=lambda theta: optax.GradientTransformation(lambda w: 0, lambda g, s, w: (g, g)))


def test_a_hyperparameter_that_only_the_optimizer_s_init_reads_is_refused():
    theta = {"rate": jnp.array(0.1), "start": jnp.zeros(INPUTS)}
    make = lambda optimizer, loss=linear: meta.as_model(
        loss, optimizer, init=lambda key: (theta, theta["start"]), example=EXAMPLE
    )
    kept = lambda theta: optax.inject_hyperparams(optax.sgd)(learning_rate=theta["rate"])
    with pytest.raises(ValueError, match=r"θ\['rate'\] is read by the optimizer's init and by no step"):
        make(kept)
    make(kept, lambda theta, w, example: linear(theta, theta["rate"] * w, example))
    make(lambda theta: optax.sgd(theta["rate"]))  # a start that nobody reads is for the resets


GRU, READOUT = cells.gru(INPUTS, UNITS), readouts.linear(UNITS, 1)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"optimizer": optax.sgd}, TypeError, "optimizer must be an optax GradientTransformation"),
        ({"cell": None}, TypeError, "cell must have the functions init, step, output, got None"),
        ({"readout": READOUT.apply}, TypeError, "readout must have the functions init, apply, got "),
        ({"example": jnp.zeros(3)}, TypeError, r"example must be a pair \(x, y\) of one step, got "),
        ({"example": None}, TypeError, r"example must be a pair \(x, y\) of one step, got None"),
        ({"cell": cells.gru(INPUTS + 1, UNITS)}, ValueError, "cell fails on x: .* the same shape"),
        ({"readout": readouts.linear(9, 1)}, ValueError, "readout or loss fails on the cell's output: "),
        ({"loss": lambda prediction, y: y}, TypeError, "what loss returns must be a floating scalar"),
    ],
)
def test_bad_arguments_of_a_readout_that_learns(given, error, message):
    fits = {"cell": GRU, "readout": READOUT, "loss": losses.squared_error, "optimizer": optax.sgd(0.1)}
    fits["example"] = (jnp.zeros(INPUTS), jnp.zeros(1))
    meta.online_readout(**fits)
    with pytest.raises(error, match=message):
        meta.online_readout(**fits | given)
