"""Modules of flax nnx: `nnx.split` and `nnx.merge` make a `Model`.

The parameters are the `nnx.State` of the module's `nnx.Param`. Other variables that a step changes (running
statistics, counts of random streams) are hidden state, an `nnx.State` too.
"""

import functools
from collections.abc import Callable

import jax

from online_grads.adapters.build import Functions, build, reading, shapes, started, without
from online_grads.adapters.refusals import check_batch_norm, check_form, feature_axes, foreign
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
        example: (x, y) of one step, arrays or `jax.ShapeDtypeStruct`, without a batch axis.
        readout: likewise, or one of `online_grads.readouts`; by default the prediction is out_t.
        carry: the first carry, or key -> carry; by default the module's
            `initialize_carry(x.shape, rngs=rngs)`.
        call: (module, carry, x) -> (carry, out), in place of the module's call.
        trainable: an nnx filter of the variables that are parameters.

    Returns:
        A `Model`, as `online_grads.adapters` explains, whose parameters are an `nnx.State`; with a readout
        they are {"cell": State, "readout": State}.

    Raises:
        TypeError, ValueError: the module, the readout or the loss does not fit the example, as
            `online_grads.adapters` says.
        ValueError: also if a step sets a parameter or makes new variables.

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
    shape, draw, merge, apply = _functions("module", module, trainable, call)
    if call is None:
        check_form(shape, x, feature_axes(shape), sequences=(nnx.RNN, nnx.Bidirectional))

    def init(key):
        key, key_carry = jax.random.split(key)
        params, state = draw(key)
        start = lambda: _initialize_carry(merge(params, state), key_carry, x)
        return params, state, started(carry, key_carry, start, own_call=call is None)

    def of_readout(readout):
        shape, draw, _, apply = _functions("readout", readout, trainable, None)
        return Functions(f"the readout {type(shape).__name__}", lambda key, out: draw(key), apply, _part)

    return build(
        Functions(type(shape).__name__, init, apply, _part), reading(readout, of_readout), loss, x, y
    )


def _functions(role, module, trainable, call):
    """(module as shapes, key -> (params, state), merge, apply) of an nnx module or a constructor of one."""
    other = foreign(module, "nnx")
    if other or not (callable(module) or isinstance(module, nnx.Module)):
        raise TypeError(
            f"{role} must be an nnx.Module or a function rngs -> nnx.Module, got {other or repr(module)}"
        )
    make = (lambda rngs: module) if isinstance(module, nnx.Module) else module
    try:
        shape = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    except Exception as error:
        kind = module.__name__ if isinstance(module, type) else None
        hint = f"; hand over an instance, or lambda rngs: {kind}(..., rngs=rngs)" if kind else ""
        raise ValueError(f"making the {role} by {module!r}(rngs) fails: {error}{hint}") from error
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
        _watch(made)
        result = made(*arguments) if call is None else call(made, *arguments)
        _, learned, moved = nnx.split(made, trainable, ...)
        _refuse_changes("sets the parameter", params, learned, lambda one, other: one is not other)
        _refuse_changes("makes or loses the variable", state, moved, lambda one, other: False)
        return result, moved

    return shape, draw, merge, apply


def _watch(made) -> None:
    """Let every BatchNorm of a module refuse one observation; the module is not the caller's."""
    for _, node in nnx.iter_graph(made):
        if isinstance(node, nnx.BatchNorm):
            object.__setattr__(node, "__class__", _watching(type(node)))


@functools.cache
def _watching(kind):
    class Watching(kind):
        def __call__(self, x, use_running_average=None, **options):
            check_batch_norm(self, x, use_running_average)
            return super().__call__(x, use_running_average, **options)

    Watching.__name__ = kind.__name__
    return Watching


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
            "it has no initialize_carry(x.shape, rngs=...); give the first carry, carry=..., "
            "if it is a (carry, x) -> (carry, out) module"
        ) from error
