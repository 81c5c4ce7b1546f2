"""What the adapters share: from a module's pure functions to a `Model`."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads import jaxprs
from online_grads.adapters.refusals import ORDER, show, tried
from online_grads.adapters.separate import read_off, unchanged
from online_grads.analysis import analyse
from online_grads.readouts import Readout
from online_grads.types import Model, PyTree


class Hidden(NamedTuple):
    """The hidden state of an adapted module."""

    carry: PyTree  # the module's own carry
    state: PyTree = ()  # what else a step changes, in the framework's structure
    output: PyTree = ()  # out_t, where it cannot be read off the others


class Functions(NamedTuple):
    """A module as pure functions; `state` is all that it holds beside its parameters."""

    name: str
    init: Callable  # key -> (params, state, carry); of a readout (key, out) -> (params, state)
    apply: Callable  # (params, state, *arguments) -> (result, state)
    part: Callable  # (state, keep: bool per leaf) -> state without the other leaves


def build(cell: Functions, readout: Functions | None, loss: Callable, x: PyTree, y: PyTree) -> Model:
    """The model of a module, and of a second one that reads its output.

    Args:
        cell, readout: the modules.
        loss: (prediction, y) -> scalar.
        x, y: shapes of one step.

    Raises:
        TypeError: `loss` is no function, or what the module returns no pair.
        ValueError: the module, the readout or the loss fails on the example, the carry changes in
            structure, shape or dtype, or a constructor draws a floating-point constant from its key.
    """
    if not callable(loss):
        raise TypeError(f"loss must be a function (prediction, y) -> scalar, got {loss!r}")
    key = jax.eval_shape(lambda: jax.random.key(0))
    begun = tried(f"making {cell.name} fails", jax.eval_shape, cell.init, key)
    _check_step(cell, begun, x)
    if readout is not None:
        out = jax.eval_shape(cell.apply, *begun, x)[0][1]
        cell = _read_by(cell, readout, len(jax.tree.leaves(begun[1])), out)
        failure = f"{readout.name} fails on the output {show(out)}"
        begun = tried(failure, jax.eval_shape, cell.init, key)
        tried(failure, jax.eval_shape, cell.apply, *begun, x)
    params, state, carry = begun

    constants = _constants(cell, begun, x)
    keep, treedef = [leaf is None for leaf in constants], jax.tree.structure(state)
    part = lambda state: cell.part(state, keep) if any(keep) else ()

    def advance(params, hidden, x):
        carry, moving = hidden
        moving = iter(jax.tree.leaves(moving))
        whole = [next(moving) if leaf is None else leaf for leaf in constants]
        (carry, out), state = cell.apply(params, jax.tree.unflatten(treedef, whole), carry, x)
        return (carry, part(state)), out

    start = carry, jax.eval_shape(part, state)
    out = jax.eval_shape(advance, params, start, x)[1]
    read = read_off(advance, params, start, x)

    def init(key):
        params, state, carry = cell.init(key)
        empty = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), out) if read is None else ()
        # a learner's state may be donated, and the module that was given stays whole
        return jax.tree.map(jnp.copy, (params, Hidden(carry, part(state), empty)))

    def transition(params, hidden, x):
        moved, out = advance(params, hidden[:2], x)
        return Hidden(*moved, out if read is None else ())

    def loss_of_hidden(params, hidden, y):
        prediction = hidden.output if read is None else read(params, hidden[:2])
        return loss(prediction, y), prediction

    tried(f"loss fails on the prediction {show(out)} and y {show(y)}", jax.eval_shape, loss, out, y)
    model = Model(init, transition, loss_of_hidden, (x, y))
    analyse(model, allow_unused=True)
    return model


def shapes(example: tuple) -> tuple[PyTree, PyTree]:
    """The shapes of the (x, y) of one step.

    Raises:
        TypeError: `example` is no pair of arrays.
    """
    if not isinstance(example, tuple) or len(example) != 2:
        raise TypeError(f"example must be a pair (x, y) of one step, got {example!r}")
    return jax.eval_shape(lambda example: example, example)


def without(state: PyTree, keep: Sequence[bool]) -> PyTree:
    """The state with None in place of the leaves that are not kept.

    >>> without({"mean": 1.0, "size": 3}, [True, False])
    {'mean': 1.0, 'size': None}
    """
    leaves, treedef = jax.tree.flatten(state)
    return jax.tree.unflatten(
        treedef, [leaf if kept else None for leaf, kept in zip(leaves, keep, strict=True)]
    )


def reading(readout, functions: Callable) -> Functions | None:
    """A readout of this library as functions, or what `functions` makes of one of a framework."""
    if readout is None:
        return None
    if not isinstance(readout, Readout):
        return functions(readout)
    return Functions(
        "the readout",
        lambda key, out: (readout.init(key), ()),
        lambda params, state, out: (readout.apply(params, out), state),
        without,
    )


def started(carry: PyTree | Callable | None, key, default: Callable, *, own_call: bool) -> PyTree:
    """The carry before the first step: as given, as a given function of the key makes it, or the default.

    Raises:
        ValueError: the module is called in its own way, and what it starts from itself has another structure
            or other shapes than what is given.
    """
    if carry is None:
        return default()
    given = jax.tree.map(jnp.asarray, carry(key) if callable(carry) else carry)
    if not own_call:
        return given
    try:
        own = jax.eval_shape(default)
    except Exception:  # of a module that does not know its own, whatever that raises
        return given
    form = lambda tree: (jax.tree.structure(tree), [leaf.shape for leaf in jax.tree.leaves(tree)])
    if form(given) != form(own):
        raise ValueError(f"the module itself starts from carry {show(own)}, got {show(given)}")
    return given


def _check_step(cell, begun, x):
    """Refuse a module that is not called as (carry, x) -> (carry, out)."""
    carry = begun[2]
    called = f"{cell.name} on carry {show(carry)} and x {show(x)}"
    result, _ = tried(f"{called} fails", jax.eval_shape, cell.apply, *begun, x, hint=ORDER)
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"{called} must return a pair (carry, out), got {show(result)}; "
            "call=lambda module, carry, x: ... says how to call a module of another form"
        )
    moved = result[0]
    if jax.tree.structure(moved) != jax.tree.structure(carry):
        raise ValueError(f"{called} must return a pair (carry, out), but its carry is {show(moved)}{ORDER}")
    for (path, one), other in zip(jax.tree.leaves_with_path(carry), jax.tree.leaves(moved), strict=True):
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            precision = "; carry, parameters and x need one precision"
            raise ValueError(
                f"{called} changes carry{jax.tree_util.keystr(path)} "
                f"from {show(one)} to {show(other)}{precision if one.shape == other.shape else ORDER}"
            )


def _read_by(cell: Functions, readout: Functions, inner: int, out) -> Functions:
    """The cell, with so many leaves of state, and a readout: params and state are {"cell", "readout"}."""

    def init(key):
        key_cell, key_readout = jax.random.split(key)
        params, state, carry = cell.init(key_cell)
        params_readout, state_readout = readout.init(key_readout, out)
        return (
            {"cell": params, "readout": params_readout},
            {"cell": state, "readout": state_readout},
            carry,
        )

    def apply(params, state, carry, x):
        (carry, out), moved = cell.apply(params["cell"], state["cell"], carry, x)
        prediction, moved_readout = readout.apply(params["readout"], state["readout"], out)
        return (carry, prediction), {"cell": moved, "readout": moved_readout}

    def part(state, keep):
        return {
            "cell": cell.part(state["cell"], keep[:inner]),
            "readout": readout.part(state["readout"], keep[inner:]),
        }

    return Functions(f"{cell.name} with {readout.name}", init, apply, part)


def _constants(cell: Functions, begun: tuple, x) -> list:
    """Per leaf of the state its value, if no step changes it and every key gives the same; else None."""
    params, state, carry = begun

    def step(params, state, carry, x):
        result, state = cell.apply(params, state, carry, x)
        return state, result

    fixed = unchanged(step, params, state, carry, x)
    if not any(fixed):
        return [None] * len(fixed)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def drawn(chosen):
        of = lambda key: [
            leaf for leaf, one in zip(jax.tree.leaves(cell.init(key)[1]), chosen, strict=True) if one
        ]
        return jaxprs.live_inputs(jaxprs.trace(of, key))[0]

    if drawn(fixed):
        for number, (path, leaf) in enumerate(jax.tree.leaves_with_path(state)):
            if not fixed[number] or not drawn([other == number for other in range(len(fixed))]):
                continue
            if jnp.issubdtype(leaf.dtype, jnp.inexact):
                raise ValueError(
                    f"{cell.name} draws {jax.tree_util.keystr(path)} {show(leaf)} from its key, and it is no "
                    "parameter, nor does a step change it: a constant that differs from seed to seed; "
                    "hand over the module itself (linen: its variables) in place of what draws it"
                )
            fixed[number] = False
    values = jax.tree.leaves(cell.init(jax.random.key(0))[1])
    return [value if one else None for value, one in zip(values, fixed, strict=True)]
