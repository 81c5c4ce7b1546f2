"""Models that the tests share: small, in float64, with every way in which a parameter can enter."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from online_grads import Model, cells, from_cell, losses, readouts, with_resets

INPUTS, OUTPUTS, HIDDEN = 3, 2, 4
EXAMPLE = (jnp.zeros(INPUTS), jnp.zeros(OUTPUTS))


def of_cell(cell):
    return from_cell(cell, readouts.linear(cell.size, OUTPUTS), losses.softmax_cross_entropy, example=EXAMPLE)


def vanilla():
    return of_cell(cells.vanilla_rnn(INPUTS, HIDDEN, leak=0.6))


def lstm():
    return of_cell(cells.lstm(INPUTS, HIDDEN))


def gru():
    return of_cell(cells.gru(INPUTS, HIDDEN))


def gru_reset_before():
    return of_cell(cells.gru_reset_before(INPUTS, HIDDEN))


def elstm():
    """A cell whose weights act on one hidden entry that is carried; its output is not."""
    return of_cell(cells.elstm(INPUTS, HIDDEN))


def stacked():
    """A GRU below an LSTM, of different sizes."""
    return of_cell(cells.stack(cells.gru(INPUTS, HIDDEN), cells.lstm(HIDDEN, HIDDEN - 1)))


def joint():
    """The leaky tanh network of the papers, with all parameters in one matrix that meets [a; x; 1]."""
    alpha = 0.6

    def init(key):
        keys = jax.random.split(key, 3)
        params = {
            "W": jax.random.normal(keys[0], (HIDDEN, HIDDEN + INPUTS + 1)) / 3,
            "readout": jax.random.normal(keys[1], (OUTPUTS, HIDDEN)),
        }
        return params, jax.random.normal(keys[2], (HIDDEN,))

    def transition(params, a, x):
        drive = params["W"] @ jnp.concatenate([a, x, jnp.ones(1)])
        return (1 - alpha) * a + alpha * jnp.tanh(drive)

    def loss(params, a, y):
        prediction = params["readout"] @ a
        return losses.squared_error(prediction, y), prediction

    return Model(init, transition, loss, EXAMPLE)


def normalised():
    """Weight normalisation, a masked recurrent matrix, a gain shared by all units, tied input weights."""
    mask = jnp.asarray([[1.0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 1]])

    def init(key):
        keys = jax.random.split(key, 4)
        params = {
            "direction": jax.random.normal(keys[0], (HIDDEN, HIDDEN)),
            "length": jnp.linspace(0.5, 1.0, HIDDEN),
            "input": jax.random.normal(keys[1], (INPUTS, HIDDEN)),
            "gain": jnp.asarray(0.7),
            "decay": jnp.zeros(HIDDEN),
            "readout": jax.random.normal(keys[2], (HIDDEN, OUTPUTS)),
        }
        return params, {"h": jax.random.normal(keys[3], (HIDDEN,)), "count": jnp.zeros((), jnp.int32)}

    def transition(params, hidden, x):
        direction = params["direction"] / jnp.linalg.norm(params["direction"], axis=1, keepdims=True)
        matrix = params["length"][:, None] * direction * mask
        drive = matrix @ hidden["h"] + x @ params["input"]
        again = (2 * x) @ params["input"]
        decay = jnp.exp(-jnp.exp(params["decay"]))
        h = decay * hidden["h"] + (1 - decay) * jnp.tanh(params["gain"] * drive + 0.3 * again)
        return {"h": h, "count": hidden["count"] + 1}

    def loss(params, hidden, y):
        prediction = hidden["h"] @ params["readout"]
        return losses.squared_error(prediction, y), prediction

    return Model(init, transition, loss, EXAMPLE)


def columns():
    """Independent columns: a batched product, a convolution-like direct use, a complex state."""

    def init(key):
        keys = jax.random.split(key, 5)
        params = {
            "mix": jax.random.normal(keys[0], (3, 2, 2)) / 2,
            "input": jax.random.normal(keys[1], (3, INPUTS, 2)),
            "taps": jax.random.normal(keys[2], (2,)),
            "angle": jnp.linspace(0.1, 1.0, 2),
            "readout": jax.random.normal(keys[3], (6, OUTPUTS)),
        }
        return params, (jax.random.normal(keys[4], (3, 2)), jnp.zeros(2, complex))

    def transition(params, hidden, x):
        h, phasor = hidden
        drive = jnp.einsum("cij,cj->ci", params["mix"], h) + jnp.einsum("j,cji->ci", x, params["input"])
        phasor = 0.9 * jnp.exp(1j * params["angle"].astype(complex)) * phasor + x[:2].astype(complex)
        return jnp.tanh(drive + (params["taps"] * jnp.real(phasor))[None]), phasor

    def loss(params, hidden, y):
        h, phasor = hidden
        prediction = h.ravel() @ params["readout"] + jnp.imag(phasor)
        return losses.squared_error(prediction, y), prediction

    return Model(init, transition, loss, EXAMPLE)


def quadratic():
    """A linear transition and a loss that is quadratic in θ, the readout's gain included."""
    keys = jax.random.split(jax.random.key(11), 2)
    A = 0.3 * jax.random.normal(keys[0], (HIDDEN, HIDDEN))
    B = jax.random.normal(keys[1], (HIDDEN, INPUTS))

    def init(key):
        return {"drive": jnp.linspace(-0.5, 0.5, INPUTS), "gain": jnp.asarray(0.3)}, jnp.linspace(
            0, 1, HIDDEN
        )

    def transition(params, h, x):
        return A @ h + B @ (params["drive"] + x)

    def loss(params, h, y):
        return losses.squared_error(h[:OUTPUTS], y) + params["gain"] ** 2 + params["gain"] * y[0], h[:OUTPUTS]

    return Model(init, transition, loss, EXAMPLE)


def flax_cell(name):
    def model():
        import flax.linen as nn

        cell = getattr(nn, name)(features=HIDDEN, param_dtype=jnp.float64)

        def init(key):
            hidden = cell.initialize_carry(key, (INPUTS,))
            hidden = jax.tree.map(lambda h: h.astype(jnp.float64), hidden)
            keys = jax.random.split(key)
            params = cell.init(keys[0], hidden, EXAMPLE[0])
            # flax starts its biases at zero: a gradient there should be told from none
            params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(keys[0], p.shape), params)
            return {"cell": params, "readout": jax.random.normal(keys[1], (HIDDEN, OUTPUTS))}, hidden

        def loss(params, hidden, y):
            output = hidden[1] if isinstance(hidden, tuple) else hidden
            prediction = output @ params["readout"]
            return losses.squared_error(prediction, y), prediction

        return Model(init, lambda params, h, x: cell.apply(params["cell"], h, x)[0], loss, EXAMPLE)

    return model


def equinox_cell(name):
    def model():
        import equinox as eqx

        def init(key):
            cell = getattr(eqx.nn, name)(INPUTS, HIDDEN, key=key)
            zeros = jnp.zeros(HIDDEN)
            hidden = (zeros, zeros) if name == "LSTMCell" else zeros
            params = {
                "cell": eqx.partition(cell, eqx.is_array)[0],
                "readout": jnp.ones((HIDDEN, OUTPUTS)).at[0].set(2.0),
            }
            return params, hidden

        static = eqx.partition(getattr(eqx.nn, name)(INPUTS, HIDDEN, key=jax.random.key(0)), eqx.is_array)[1]

        def transition(params, hidden, x):
            return eqx.combine(params["cell"], static)(x, hidden)

        def loss(params, hidden, y):
            output = hidden[0] if isinstance(hidden, tuple) else hidden
            prediction = output @ params["readout"]
            return losses.squared_error(prediction, y), prediction

        return Model(init, transition, loss, EXAMPLE)

    return model


MODELS = {
    "vanilla": vanilla,
    "lstm": lstm,
    "gru": gru,
    "gru_reset_before": gru_reset_before,
    "stacked": stacked,
    "normalised": normalised,
    "columns": columns,
    "flax GRUCell": flax_cell("GRUCell"),
    "flax OptimizedLSTMCell": flax_cell("OptimizedLSTMCell"),
    "equinox LSTMCell": equinox_cell("LSTMCell"),
    "equinox GRUCell": equinox_cell("GRUCell"),
}


def learned_start(model):
    """The model with resets to an initial state that is a parameter; it also starts there."""
    like = jax.eval_shape(model.init, jax.random.key(0))[1]
    leaves, treedef = jax.tree.flatten(like)

    def init(key):
        params, _ = model.init(key)
        start = [
            jax.random.normal(key, leaf.shape, leaf.dtype)
            for leaf in leaves
            if jnp.issubdtype(leaf.dtype, jnp.floating)
        ]
        return {"model": params, "start": start}, begin({"start": start})

    def begin(params):
        learned = iter(params["start"])
        return jax.tree.unflatten(
            treedef,
            [
                next(learned)
                if jnp.issubdtype(leaf.dtype, jnp.floating)
                else jnp.zeros(leaf.shape, leaf.dtype)
                for leaf in leaves
            ],
        )

    inner = Model(
        init,
        lambda params, hidden, x: model.transition(params["model"], hidden, x),
        lambda params, hidden, y: model.loss(params["model"], hidden, y),
        model.example,
    )
    return with_resets(inner, begin)


def fixed_start(model):
    """The model with resets to where it starts."""
    start = jax.eval_shape(model.init, jax.random.key(0))[1]
    return with_resets(model, jax.tree.map(lambda s: jnp.full(s.shape, 0.2, s.dtype), start))


class Problem(NamedTuple):
    """A model with a stream, and the exact gradient of the stream's mean loss."""

    model: Model
    params: dict
    hidden: object
    xs: object
    ys: object
    exact: dict

    @property
    def args(self):
        return self[1:5]


@functools.cache
def problem(name, steps):
    """The problem of a model of `MODELS`, computed once."""
    return problem_of(MODELS[name](), steps)


def problem_of(model, steps=10):
    """A problem of any model."""
    params, hidden = jax.jit(model.init)(jax.random.key(0))
    xs, ys = stream(model, steps)
    return Problem(model, params, hidden, xs, ys, exact_gradient(model, params, hidden, xs, ys))


def stream(model, length, seed=0):
    """Random xs, ys that fit the model's example; resets, if any, all False."""
    x, y = jax.tree.map(lambda s: jax.ShapeDtypeStruct((length, *s.shape), s.dtype), model.example)
    keys = iter(jax.random.split(jax.random.key(seed), 8))

    def draw(s):
        if s.dtype == jnp.bool_:
            return jnp.zeros(s.shape, bool)
        return jax.random.normal(next(keys), s.shape, s.dtype)

    return jax.tree.map(draw, x), jax.tree.map(draw, y)


def exact_gradient(model, params, hidden, xs, ys):
    """∂/∂θ of the whole stream's mean loss, by reverse mode through everything."""

    def mean_loss(params):
        def body(hidden, xy):
            hidden = model.transition(params, hidden, xy[0])
            return hidden, model.loss(params, hidden, xy[1])[0]

        return jnp.mean(jax.lax.scan(body, hidden, (xs, ys))[1])

    return jax.jit(jax.grad(mean_loss))(params)


def relative_error(got, expected):
    """‖got - expected‖ / ‖expected‖ over all leaves."""
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    return float(np.linalg.norm(flat(got) - flat(expected)) / np.linalg.norm(flat(expected)))
