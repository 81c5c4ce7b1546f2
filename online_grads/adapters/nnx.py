"""Modules of flax nnx: `nnx.split` and `nnx.merge` make a `Model`.

The parameters are the `nnx.State` of the module's `nnx.Param`. Other variables that a step changes (running
statistics, counts of random streams) are hidden state, an `nnx.State` too.
"""

from collections.abc import Callable

import jax

from online_grads.adapters.build import Functions, build, reading, shapes, started, without
from online_grads.readouts import Readout
from online_grads.types import Model, PyTree

try:
    from flax import nnx
except ImportError as error:
    raise ImportError("online_grads.adapters.nnx needs flax: pip install 'online-grads[flax]'") from error


def from_module(
    module: nnx.Module | Callable,
    loss: Callable,
    *,
    example: tuple,
    readout: nnx.Module | Callable | Readout | None = None,
    carry: PyTree | Callable | None = None,
    call: Callable | None = None,
    trainable=nnx.Param,
) -> Model:
    """The model of a flax nnx module.

        carry_t, out_t = module(carry_{t-1}, x_t)          ŷ_t = readout(out_t)          ℓ_t = loss(ŷ_t, y_t)

    Args:
        module: a cell, or any module that is called as (carry, x) -> (carry, out), where every start has the
            parameters that it has now; or a function of `nnx.Rngs` that makes one, drawn anew for every key.
            The module itself is never changed.
        loss: (prediction, y) -> scalar, as in `online_grads.losses`.
        example: (x, y) of one step, arrays or `jax.ShapeDtypeStruct`.
        readout: likewise, or one of `online_grads.readouts`; by default the prediction is out_t. The
            parameters then are {"cell": State, "readout": State}.
        carry: the first carry, or a function of a key that makes it; by default the module's
            `initialize_carry(x.shape, rngs=rngs)`.
        call: a function (module, carry, x) -> (carry, out) in place of the module's call.
        trainable: an nnx filter of the variables that are parameters.

    Returns:
        A `Model`; see `online_grads.adapters` for its hidden state.

    Raises:
        TypeError: an argument is of the wrong type, or the module returns no pair.
        ValueError: the module, the readout or the loss fails on the example (with what it says), the carry
            changes in structure, shape or dtype, there is no first carry, or a step sets a parameter or
            makes new variables.

    >>> import jax.numpy as jnp
    >>> from online_grads import losses
    >>> cell = nnx.GRUCell(3, 8, param_dtype=float, rngs=nnx.Rngs(0))
    >>> readout = lambda rngs: nnx.Linear(8, 2, param_dtype=float, rngs=rngs)
    >>> example = jnp.zeros(3), jnp.zeros(2)
    >>> model = from_module(cell, losses.squared_error, example=example, readout=readout)
    >>> params, hidden = model.init(jax.random.key(0))

    The way back, from the params of a learner's state too:

    >>> nnx.update(cell, params["cell"])
    >>> cell(hidden.carry, example[0])[1].shape
    (8,)
    """
    x, y = shapes(example)
    name, draw, merge, apply = _functions("module", module, trainable, call)

    def init(key):
        key, key_carry = jax.random.split(key)
        params, state = draw(key)
        start = lambda: _initialize_carry(merge(params, state), key_carry, x)
        return params, state, started(carry, key_carry, start)

    def of_readout(readout):
        name, draw, _, apply = _functions("readout", readout, trainable, None)
        return Functions(f"the readout {name}", lambda key, out: draw(key), apply, _part)

    return build(Functions(name, init, apply, _part), reading(readout, of_readout), loss, x, y)


def _functions(role, module, trainable, call):
    """(name, key -> (params, state), merge, apply) of an nnx module or a constructor of one."""
    if not callable(module) and not isinstance(module, nnx.Module):
        raise TypeError(f"{role} must be an nnx.Module or a function rngs -> nnx.Module, got {module!r}")
    make = (lambda rngs: module) if isinstance(module, nnx.Module) else module
    try:
        shape = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    except Exception as error:
        raise ValueError(f"making the {role} by {module!r}(rngs) fails: {error}") from error
    if not isinstance(shape, nnx.Module):
        raise TypeError(f"the {role} that {module!r}(rngs) makes must be an nnx.Module, got {shape!r}")
    graph = nnx.split(shape, trainable, ...)[0]

    def draw(key):
        _, params, state = nnx.split(make(nnx.Rngs(key)), trainable, ...)
        return params, state

    def merge(params, state):
        # with variables of its own: some versions of flax make the given ones those of the module
        return nnx.merge(graph, *jax.tree.map(lambda leaf: leaf, (params, state)))

    def apply(params, state, *arguments):
        made = merge(params, state)
        result = made(*arguments) if call is None else call(made, *arguments)
        _, learned, moved = nnx.split(made, trainable, ...)
        _refuse_changes("sets the parameter", params, learned, lambda one, other: one is not other)
        _refuse_changes("makes or loses the variable", state, moved, lambda one, other: False)
        return result, moved

    return type(shape).__name__, draw, merge, apply


def _refuse_changes(what, before, after, differ) -> None:
    one, other = (dict(jax.tree.leaves_with_path(tree)) for tree in (before, after))
    changed = one.keys() ^ other.keys() or {path for path in one if differ(one[path], other[path])}
    if changed:
        names = ", ".join(sorted(map(jax.tree_util.keystr, changed)))
        raise ValueError(
            f"a step {what} {names}: keep what changes in the carry or in another kind of variable"
        )


def _part(state, keep):
    """The variables of which something is kept."""
    keep, kept = iter(keep), []
    for path, variable in nnx.to_flat_state(state):
        chosen = [next(keep) for _ in jax.tree.leaves(variable)]
        if any(chosen):
            kept.append((path, without(variable, chosen)))
    return nnx.from_flat_state(kept)


def _initialize_carry(made, key, x):
    try:
        return made.initialize_carry(x.shape, rngs=nnx.Rngs(key))
    except (AttributeError, NotImplementedError) as error:
        raise ValueError(
            "it has no initialize_carry(x.shape, rngs=...); give the first carry, carry=..."
        ) from error
