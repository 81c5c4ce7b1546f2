"""Meta-learning: a learner is itself a recurrence, and its hyperparameters are the parameters of a model.

    hidden  (φ, s)      what the inner learner trains, and the state of its optimizer
    params  θ           learning rates, momenta, decays, weights of a penalty, an initial φ ...

    (φ_t, s_t) = optimizer_θ(φ_{t-1}, s_{t-1}, ∂ℓ(θ, φ_{t-1}, x_t)/∂φ)          meta-loss ℓ(θ, φ_t, y_t)

x_t is the training example of a step and y_t the one that the meta-loss is read at, as a rule the next
(`pairs`). So every estimator of the library gives hypergradients online, through the whole past of the
training: `rtrl` is forward-mode hyperparameter optimisation, `uoro` serves many hyperparameters, and
`snap` with one step size per weight of a linear learner is IDBD without its clip: it keeps what a step
size did to its own weight. (IDBD sums up the past in terms of β = log α. `snap` does so in terms of α
itself and multiplies by the present dα/dβ: the same while β stands still, and nearly so while it moves.)

`online_readout` meta-learns a representation: a cell whose readout learns inside the model.

Reference: Im, Savin & Cho (2021), Online hyperparameter optimization by real-time recurrent learning,
arXiv:2102.07813; Sutton (1992), Adapting bias by gradient descent: an incremental version of
delta-bar-delta, AAAI; Javed, White & Sutton (2021), arXiv:2103.05787.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from online_grads.analysis import used
from online_grads.arguments import an_optimizer
from online_grads.meta_checks import (
    check_floating,
    check_learned,
    check_pair,
    check_parts,
    check_scalar,
    check_step,
    traced,
)
from online_grads.types import Model, PyTree


class LearnerHidden(NamedTuple):
    """What an inner learner carries from example to example."""

    params: PyTree  # φ, what it trains
    optimizer: PyTree  # s, its optax state


class ReadoutHidden(NamedTuple):
    """What a cell with a readout that learns carries from step to step."""

    cell: PyTree  # h_t
    readout: PyTree  # v_t, that the steps before t taught
    optimizer: PyTree  # its optax state


def as_model(
    loss: Callable, optimizer: Callable, *, init: Callable, example: PyTree, meta_loss: Callable | None = None
) -> Model:
    """A model whose step is one step of training, and whose parameters are the hyperparameters.

        φ_t, s_t = optimizer(θ) (φ_{t-1}, s_{t-1}, ∂ℓ(θ, φ_{t-1}, x_t)/∂φ)          meta-loss ℓ(θ, φ_t, y_t)

    The hidden state is a `LearnerHidden`. A learned initial φ is a learned state at resets:
    `with_resets(model, lambda theta: begin(optimizer(theta), theta["start"]))`.

    `snap` keeps together what acts on one another entry by entry: write a linear learner's prediction as
    a product, φ @ x, and every weight is a unit of its own; optimizers that take no norm over weights
    keep them apart. A bias beside it, φ @ x + b, acts on every weight entry by entry, through the error,
    and joins them into one unit: give x a constant 1 instead. Where a gradient can vanish, Adam needs
    `eps_root`: √v has no derivative at 0. `optax.inject_hyperparams` keeps θ in its state from the start on,
    so that a later θ has no effect: make the optimizer of θ itself.

    The hypergradient grows with the rate: learn log α by a small meta-rate, such as Adam at 0.01, or clip it.

    Args:
        loss: (θ, φ, example) -> (scalar, outputs), what the inner learner descends in φ; in θ it is
            differentiated too.
        optimizer: θ -> an optax `GradientTransformation`, made anew at every step with a traced θ.
        init: key -> (θ, φ), floating leaves.
        example: one example, arrays or `jax.ShapeDtypeStruct`.
        meta_loss: (θ, φ, example) -> (scalar, outputs), by default `loss`. Without a penalty whose weight
            is learned: the smallest penalty would be none.

    Returns:
        A `Model` that takes an example as x and one as y.

    Raises:
        TypeError: the optimizer is not a function that makes one, init returns no pair or a leaf that is
            not floating, or a loss no pair with a floating scalar.
        ValueError: the functions do not fit together, one needs the value of a traced array, or a leaf of θ
            is read by the optimizer's init alone.

    >>> import jax, jax.numpy as jnp, optax
    >>> from online_grads import gradient, rtrl
    >>> def squared(theta, w, example):
    ...     x, target = example
    ...     return (w * x - target) ** 2 / 2, w
    >>> sgd = lambda theta: optax.sgd(jnp.exp(theta))
    >>> start = lambda key: (jnp.log(0.1), jnp.zeros(()))
    >>> model = as_model(squared, sgd, init=start, example=(jnp.zeros(()), jnp.zeros(())))
    >>> xs, ys = pairs((jnp.ones(6), jnp.ones(6)))
    >>> slope = gradient(rtrl(model), *model.init(jax.random.key(0)), xs, ys, key=jax.random.key(1))
    >>> print(f"{slope:.4f}")  # a higher rate would have done better
    -0.1596

    Reference: Im, Savin & Cho (2021), arXiv:2102.07813.
    """
    if not callable(optimizer):
        raise TypeError(f"optimizer must be a function of θ that makes an optax optimizer, got {optimizer!r}")
    losses = {"loss": loss, "meta_loss": loss if meta_loss is None else meta_loss}

    def start(key):
        theta, phi = init(key)
        return theta, begin(optimizer(theta), phi)

    def transition(theta, hidden, x):
        return _descend(optimizer(theta), lambda phi: loss(theta, phi, x), hidden)

    def loss_of_hidden(theta, hidden, y):
        return losses["meta_loss"](theta, hidden.params, y)

    drawn = traced("init fails on a key", init, jax.random.key(0))
    check_pair("init must return a pair (θ, φ)", drawn)
    for name, tree in zip("θφ", drawn, strict=True):
        check_floating(name, tree)
    begun = lambda theta, phi: begin(optimizer(theta), phi)
    (theta, phi), hidden = drawn, traced("optimizer fails on a traced θ and on φ", begun, *drawn)
    for name, function in losses.items():
        returned = traced(f"{name} fails on θ, φ and an example", function, theta, phi, example)
        check_pair(f"{name} must return a pair (scalar, outputs)", returned)
        check_scalar(f"what {name} returns first", returned[0])
    check_step(transition, theta, hidden, example)
    learned = {*used(transition, theta, hidden, example), *used(loss_of_hidden, theta, hidden, example)}
    check_learned(theta, used(begun, theta, phi), learned)
    return Model(start, transition, loss_of_hidden, (example, example))


def begin(optimizer: optax.GradientTransformation, params: PyTree) -> LearnerHidden:
    """An inner learner before its first example.

    >>> begin(optax.sgd(0.1, momentum=0.9), jnp.zeros(2)).optimizer[0].trace.shape
    (2,)
    """
    return LearnerHidden(params, _arrays(an_optimizer("optimizer", optimizer).init(params)))


def per_parameter(rates: PyTree) -> optax.GradientTransformation:
    """Step sizes for the last link of an optax chain: u = −α ∘ g.

    Args:
        rates: α, a pytree like what is trained, or like its upper levels: a leaf is an array like the
            parameter, or a scalar for all that is below.

    Returns:
        A `GradientTransformation` without a state. Its update raises a ValueError where the rates do not
        fit what is trained.

    >>> weights = {"layer": {"W": jnp.ones(2), "bias": jnp.ones(())}, "gain": jnp.ones(2)}
    >>> each = per_parameter({"layer": jnp.array(0.5), "gain": jnp.array([0.0, 1.0])})
    >>> updates, _ = each.update(weights, each.init(weights))
    >>> updates["layer"]["W"].tolist(), updates["gain"].tolist()
    ([-0.5, -0.5], [-0.0, -1.0])
    """

    expected = jax.tree.structure(rates)

    def scaled(updates, params):
        try:
            expected.flatten_up_to(updates)
        except ValueError as error:
            got = jax.tree.structure(updates)
            raise ValueError(f"the rates {expected} do not fit what is trained, {got}") from error
        return jax.tree.map(lambda rate, part: jax.tree.map(lambda g: -rate * g, part), rates, updates)

    return optax.stateless(scaled)


def pairs(examples: PyTree) -> tuple[PyTree, PyTree]:
    """The stream of an `as_model`: every example is trained on, and the next one is the meta-loss's.

    Of the whole stream, not of a chunk: every call loses one example.

    Args:
        examples: of the whole stream, [T, ...].

    Returns:
        (xs, ys), each [T - 1, ...].

    >>> [rows.tolist() for rows in pairs(jnp.arange(4))]
    [[0, 1, 2], [1, 2, 3]]
    """
    return jax.tree.map(lambda rows: rows[:-1], examples), jax.tree.map(lambda rows: rows[1:], examples)


def online_readout(
    cell, readout, loss: Callable, optimizer: optax.GradientTransformation, *, example: tuple
) -> Model:
    """A cell whose readout learns online inside the model: its gradient goes through those updates.

        v_t = optimizer(v_{t-1}, ∂ℓ_{t-1}/∂v_{t-1})          h_t = cell.step(θ, h_{t-1}, x_t)
        ŷ_t = readout(v_t, output(h_t))                      ℓ_t = loss(ŷ_t, y_t)

    The parameters are the cell's θ alone, the hidden state is a `ReadoutHidden`, and the loss's outputs
    are the predictions. The input of a step is (x_t, y_{t-1}), see `taught`. With a linear readout
    without a bias `snap` keeps a column and its own readout weights together: on independent columns it
    is the recursion of the reference, which drops what a column does to other columns' readout weights
    through the common error. `rtrl` is exact, and its influence is dense, O(n p): the error of all columns
    moves every readout weight. A bias acts on all readout weights entry by entry, through
    that error, and joins the columns into one unit: `snap` then costs what a dense `rtrl` does. A
    constant 1 among the cell's outputs serves as well, and keeps the columns apart.

    Args:
        cell: a `Cell`, as `online_grads.cells` makes them.
        readout: an (init, apply) pair, as `online_grads.readouts` makes them.
        loss: (prediction, y) -> scalar, as in `online_grads.losses`.
        optimizer: any optax `GradientTransformation`; the reference has `optax.sgd`.
        example: (x, y) of one step, arrays or `jax.ShapeDtypeStruct`.

    Returns:
        A `Model` that takes (x, previous y).

    Raises:
        TypeError: the cell, the readout or the optimizer is none, the example is no pair, or the loss
            returns no floating scalar.
        ValueError: they do not fit together.

    >>> import jax, jax.numpy as jnp, optax
    >>> from online_grads import cells, gradient, losses, readouts, snap
    >>> cell, readout = cells.columnar_rnn(3, 8), readouts.linear(8, 1, bias=False)
    >>> example = jnp.zeros(3), jnp.zeros(1)
    >>> model = online_readout(cell, readout, losses.squared_error, optax.sgd(0.01), example=example)
    >>> stream = taught(jnp.ones((5, 3)), jnp.ones((5, 1)))
    >>> slope = gradient(snap(model), *model.init(jax.random.key(0)), *stream, key=jax.random.key(1))
    >>> slope["bias"].shape
    (8,)

    Reference: Javed, White & Sutton (2021), arXiv:2103.05787.
    """
    an_optimizer("optimizer", optimizer)
    check_parts("cell", cell, "init", "step", "output")
    check_parts("readout", readout, "init", "apply")
    check_pair("example must be a pair (x, y) of one step", example)

    def init(key):
        key_cell, key_readout = jax.random.split(key)
        params, hidden = cell.init(key_cell)
        return params, ReadoutHidden(hidden, *begin(optimizer, readout.init(key_readout)))

    def evaluate(v, h, y):
        prediction = readout.apply(v, cell.output(h))
        return loss(prediction, y), prediction

    def transition(params, hidden, x):
        x, y_before = x
        h, v, state = hidden
        moved = _descend(optimizer, lambda v: evaluate(v, h, y_before), LearnerHidden(v, state))
        return ReadoutHidden(cell.step(params, h, x), *moved)

    def loss_of_hidden(params, hidden, y):
        return evaluate(hidden.readout, hidden.cell, y)

    x, y = example
    params, hidden = traced("cell, readout or optimizer cannot begin", init, jax.random.key(0))
    traced("cell fails on x", cell.step, params, hidden.cell, x)
    read = traced("readout or loss fails on the cell's output", evaluate, hidden.readout, hidden.cell, y)
    check_scalar("what loss returns", read[0])
    check_step(transition, params, hidden, (x, y))
    return Model(init, transition, loss_of_hidden, ((x, y), y))


def taught(xs: PyTree, ys: PyTree) -> tuple[PyTree, PyTree]:
    """The stream of an `online_readout`: inputs with the target of the step before, 0 at first.

    Of the whole stream, not of a chunk: every call puts a target that nobody gave at its first step.
    Where the cell's first output is 0 it teaches a linear readout nothing under a squared error. Under a
    cross-entropy it is class 0, and a bias learns it.

    Args:
        xs, ys: inputs and targets of the whole stream, [T, ...].

    Returns:
        ((xs, previous ys), ys).

    >>> (_, before), ys = taught(jnp.zeros((3, 2)), jnp.array([1.0, 2.0, 3.0]))
    >>> before.tolist(), ys.tolist()
    ([0.0, 1.0, 2.0], [1.0, 2.0, 3.0])
    """
    before = jax.tree.map(lambda rows: jnp.concatenate([jnp.zeros_like(rows[:1]), rows[:-1]]), ys)
    return (xs, before), ys


def _descend(optimizer: optax.GradientTransformation, objective: Callable, hidden: LearnerHidden):
    """One step of an inner learner down its objective, φ -> (scalar, outputs)."""
    grads, _ = jax.grad(objective, has_aux=True)(hidden.params)
    updates, state = optimizer.update(grads, hidden.optimizer, hidden.params)
    return LearnerHidden(optax.apply_updates(hidden.params, updates), _arrays(state))


def _arrays(state: PyTree) -> PyTree:
    # a hidden state is made of arrays; optax may hold Python numbers
    return jax.tree.map(jnp.asarray, state)
