"""Modules of equinox: `eqx.partition` and `eqx.combine` make a `Model`.

The parameters are the module with None in place of all that is not trained: static fields, None, integers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from online_grads.adapters.build import Functions, build, reading, shapes, started, without
from online_grads.adapters.refusals import check_form, foreign
from online_grads.readouts import Readout
from online_grads.types import Model, PyTree

try:
    import equinox as eqx
except ImportError as error:
    raise ImportError(
        "online_grads.adapters.equinox needs equinox: pip install 'online-grads[equinox]'"
    ) from error

CELLS = (eqx.nn.GRUCell, eqx.nn.LSTMCell)


def from_module(
    module: eqx.Module | Callable,
    loss: Callable,
    *,
    example: tuple,
    readout: eqx.Module | Callable | Readout | None = None,
    carry: PyTree | Callable | None = None,
    call: Callable | None = None,
    trainable: PyTree | Callable = eqx.is_inexact_array,
) -> Model:
    """The model of an equinox module.

        carry_t, out_t = module(carry_{t-1}, x_t)          ŷ_t = readout(out_t)          ℓ_t = loss(ŷ_t, y_t)

    `eqx.nn.GRUCell` and `eqx.nn.LSTMCell` are called in their own way, as h = cell(x, h) and (h, c) = cell(x,
    (h, c)), and their output is h. What a module keeps in an `eqx.nn.State`, and the key of its dropout, are
    parts of the carry.

    Args:
        module: a cell, or any module that is called as (carry, x) -> (carry, out), where every start has the
            parameters that it has now; or a function of a key that makes one, drawn anew for every key.
        loss: (prediction, y) -> scalar, as in `online_grads.losses`.
        example: (x, y) of one step, arrays or `jax.ShapeDtypeStruct`, without a batch axis.
        readout: likewise, called as (out) -> prediction, or one of `online_grads.readouts`; by default the
            prediction is out_t.
        carry: the first carry, or key -> carry; by default zeros for the two cells.
        call: (module, carry, x) -> (carry, out), in place of the module's call.
        trainable: what `eqx.partition` takes to tell the module's parameters; the rest is constant.

    Returns:
        A `Model`, as `online_grads.adapters` explains, whose parameters are a module; with a readout they are
        {"cell": module, "readout": module}.

    Raises:
        TypeError, ValueError: the module, the readout or the loss does not fit the example, as
            `online_grads.adapters` says.
        ValueError: also if the module keeps the start of an `eqx.nn.State`.

    >>> from online_grads import losses
    >>> cell = eqx.nn.GRUCell(3, 8, key=jax.random.key(0))
    >>> readout = lambda key: eqx.nn.Linear(8, 2, key=key)
    >>> example = jnp.zeros(3), jnp.zeros(2)
    >>> model = from_module(cell, losses.squared_error, example=example, readout=readout)
    >>> params, hidden = model.init(jax.random.key(1))

    The way back, from the params of a learner's state too:

    >>> cell = eqx.combine(params["cell"], cell)
    >>> cell(example[0], hidden.carry).shape
    (8,)
    """
    x, y = shapes(example)
    shape, draw, combine = _functions("module", module, trainable)
    is_cell, own_call = isinstance(shape, CELLS), call is None
    if call is None:
        check_form(shape, x, 1 if is_cell else None)
        call = _call_cell if is_cell else lambda made, carry, x: made(carry, x)

    def init(key):
        key, key_carry = jax.random.split(key)
        params, state = draw(key)
        start = lambda: _zeros(combine(params, state))
        return params, state, started(carry, key_carry, start, own_call=own_call)

    def apply(params, state, carry, x):
        return call(combine(params, state), carry, x), state

    def of_readout(readout):
        shape, draw, combine = _functions("readout", readout, eqx.is_inexact_array)
        read = lambda params, state, out: (combine(params, state)(out), state)
        return Functions(f"the readout {type(shape).__name__}", lambda key, out: draw(key), read, without)

    return build(
        Functions(type(shape).__name__, init, apply, without), reading(readout, of_readout), loss, x, y
    )


def _functions(role, module, trainable):
    """(module as shapes, key -> (params, state), combine) of a module or a constructor of one."""
    other = foreign(module, "equinox")
    if other or not (callable(module) or isinstance(module, eqx.Module)):
        raise TypeError(
            f"{role} must be an equinox.Module or a function key -> module, got {other or repr(module)}"
        )
    make = (lambda key: module) if isinstance(module, eqx.Module) else module
    try:
        made = eqx.filter_eval_shape(make, jax.random.key(0))
    except Exception as error:
        kind = module.__name__ if isinstance(module, type) else None
        hint = f"; hand over an instance, or lambda key: {kind}(..., key=key)" if kind else ""
        raise ValueError(f"making the {role} by {module!r}(key) fails: {error}{hint}") from error
    if not isinstance(made, eqx.Module):
        raise TypeError(
            f"the {role} that {module!r}(key) makes must be an equinox.Module, got "
            f"{foreign(made, 'equinox') or repr(made)}; an eqx.nn.State goes into the carry"
        )
    _refuse_indices(made)
    is_shape = lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    static = eqx.filter(made, is_shape, inverse=True)

    def draw(key):
        params, rest = eqx.partition(make(key), trainable)
        return params, eqx.filter(rest, eqx.is_array)

    def combine(params, state):
        return eqx.combine(params, state, static)

    return made, draw, combine


def _call_cell(cell, carry, x):
    moved = cell(x, carry)
    return moved, moved[0] if isinstance(cell, eqx.nn.LSTMCell) else moved


def _zeros(made):
    if not isinstance(made, CELLS):
        raise ValueError("its first carry is not known; give it as carry=...")
    zeros = jnp.zeros(made.hidden_size, made.weight_hh.dtype)
    return (zeros, zeros) if isinstance(made, eqx.nn.LSTMCell) else zeros


def _refuse_indices(made) -> None:
    """Refuse the first value of a state that is still inside the module, where it would be a parameter."""
    is_index = lambda node: isinstance(node, eqx.nn.StateIndex)
    for path, node in jax.tree.leaves_with_path(made, is_leaf=is_index):
        if is_index(node) and jax.tree.leaves(node):
            raise ValueError(
                f"{type(made).__name__}{jax.tree_util.keystr(path)} holds the start of an eqx.nn.State: make "
                "the module by eqx.nn.make_with_state, and let the carry hold the state"
            )
