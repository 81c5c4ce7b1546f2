"""What a task is: an endless stream of examples, generated inside the compiled program."""

from collections.abc import Callable
from typing import NamedTuple

import optax

from online_grads.types import Model


class Task(NamedTuple):
    """A stream of (x, y) pairs, and how a prediction of y is scored.

    `draw` is pure and jit-compatible with a static `length`, and drawing 2 × length steps gives
    the same stream as drawing length steps twice. A task that is about one particular recurrent
    model brings it as `model`; the others leave it None and are learned by any cell: with the
    linear readout and `loss`, or as `build` puts them together.
    """

    init: Callable  # key -> stream state
    draw: Callable  # (stream state, length) -> (stream state, (xs [length, ...], ys [length, ...]))
    example: tuple  # (x, y) of one step, jax.ShapeDtypeStruct; x without the reset flag
    loss: Callable | None = None  # (prediction [outputs], y) -> [] loss in nats or squared units
    outputs: int = 0  # size of the prediction
    model: Model | None = None  # the model that the task is about, if any
    unit: str = "loss"  # axis label of the loss that is shown
    scale: float = 1.0  # the shown loss is scale × the loss
    references: dict = {}  # name -> shown loss: entropy rates, baselines
    resets: bool = False  # xs are (x, reset) pairs: the hidden state begins anew where reset is true
    readout: Callable | None = None  # (inputs, outputs, dtype=) -> Readout, in place of the linear one
    build: Callable | None = None  # (cell, readout) -> Model, where the loss needs more than a prediction
    traces: optax.GradientTransformation | None = None  # what a gradient passes before the optimizer
    score: Callable | None = None  # (model's outputs, y) -> [], shown × scale in place of the loss
    adapt: Callable | None = None  # (stream state, ys, losses or scores [length / window]) -> stream state
    level: Callable | None = None  # stream state -> [], how far `adapt`, a curriculum, has come
