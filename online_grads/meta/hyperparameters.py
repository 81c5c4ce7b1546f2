"""A learner as a model whose parameters are its hyperparameters."""

from collections.abc import Callable

import jax

from online_grads.analysis import used
from online_grads.meta.checks import (
    check_floating,
    check_learned,
    check_pair,
    check_scalar,
    check_step,
    traced,
)
from online_grads.meta.inner import begin, descend
from online_grads.types import Model, PyTree


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
        return descend(optimizer(theta), lambda phi: loss(theta, phi, x), hidden)

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


def pairs(examples: PyTree) -> tuple[PyTree, PyTree]:
    """The stream of an `as_model`: every example is trained on, and the next one is the meta-loss's.

    Of the whole stream, not of a chunk: every call loses one example.

    Args:
        examples: of the whole stream, [T, ...].

    Returns:
        (xs, ys), each [T - 1, ...].

    >>> import jax.numpy as jnp
    >>> [rows.tolist() for rows in pairs(jnp.arange(4))]
    [[0, 1, 2], [1, 2, 3]]
    """
    return jax.tree.map(lambda rows: rows[:-1], examples), jax.tree.map(lambda rows: rows[1:], examples)
