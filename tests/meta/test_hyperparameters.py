"""Learners as recurrences: online hypergradients against differentiation through the whole training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import online_grads as og
from online_grads import losses, meta
from tests.meta.online import INPUTS, NUMBER, UNITS, T, examples, online, start
from tests.models import relative_error

EXAMPLE = (jnp.zeros(INPUTS), NUMBER)


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
        assert relative_error(online(og.rtrl, model, params, hidden, stream), expected) < 1e-10
        if name == "sgd":
            assert relative_error(online(og.tbptt, model, params, hidden, stream), expected) > 1e-2
            # the penalty belongs to the training alone
            whole = model._replace(loss=lambda theta, hidden, y: penalised(theta, hidden.params, y))
            assert relative_error(online(og.rtrl, whole, params, hidden, stream), expected) > 1e-2


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
    assert relative_error(found, jax.jit(jax.grad(episodes))(params)) < 1e-10


def test_uoro_serves_many_hyperparameters():
    rates = lambda theta: meta.per_parameter(jax.tree.map(jnp.exp, theta))
    init = lambda key: (jax.tree.map(lambda w: jnp.full_like(w, -2), weights(key)), weights(key))
    model = meta.as_model(plain, rates, init=init, example=EXAMPLE)
    params, hidden = start(model)
    stream = meta.pairs(examples(T + 1))
    noisy = lambda key: og.gradient(og.uoro(model), params, hidden, *stream, key=key)
    drawn = jax.jit(jax.vmap(noisy))(jax.random.split(jax.random.key(3), 2000))
    exact = online(og.rtrl, model, params, hidden, stream)
    assert relative_error(jax.tree.map(lambda g: g.mean(0), drawn), exact) < 0.1
    assert relative_error(jax.tree.map(lambda g: g[0], drawn), exact) > 0.1


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
    assert relative_error(online(og.snap, model, params, hidden, stream), -slope) < 1e-12
    # what a step size does to other weights is lost
    assert relative_error(online(og.rtrl, model, params, hidden, stream), -slope) > 1e-2


def test_snap_learns_as_idbd_does():
    drawn, rate = examples(60, inputs=4), 0.02
    beta, _ = idbd(*map(np.asarray, drawn), rate)

    def learned(make):
        learner = og.learner(make(lms(4)), optax.sgd(rate))
        state = learner.init(*lms(4).init(jax.random.key(0)), key=jax.random.key(1))
        return jax.jit(lambda state: og.scan(learner, state, *meta.pairs(drawn)))(state)[0].params

    moved = lambda beta: beta - np.log(0.05)
    # H counts what is past in units of the step size that was, the influence in units of the present one
    assert relative_error(moved(learned(og.snap)), moved(beta)) < 0.01
    assert relative_error(moved(learned(og.rtrl)), moved(beta)) > 0.1


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
