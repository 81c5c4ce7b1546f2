"""Modules of flax linen: `module.init` and `module.apply` make a `Model`.

The parameters are {"params": ...}, as `module.apply` takes them. Other collections that a step changes
(running statistics) are hidden state, and so is the key of the random streams that `rngs` names.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from online_grads.adapters.build import Functions, build, reading, shapes, started, without
from online_grads.adapters.refusals import (
    ORDER,
    check_batch_norm,
    check_form,
    feature_axes,
    foreign,
    show,
    tried,
)
from online_grads.readouts import Readout
from online_grads.types import Model, PyTree

try:
    import flax.linen as nn
    from flax.errors import InvalidRngError
except ImportError as error:
    raise ImportError("online_grads.adapters.linen needs flax: pip install 'online-grads[flax]'") from error

# Where the state holds the key that the random streams come from.
RNGS = "rngs"


def from_module(
    module: nn.Module,
    loss: Callable,
    *,
    example: tuple,
    readout: nn.Module | Readout | None = None,
    carry: PyTree | Callable | None = None,
    call: Callable | str | None = None,
    variables: Mapping | None = None,
    rngs: Sequence[str] = (),
) -> Model:
    """The model of a flax linen module.

        carry_t, out_t = module(carry_{t-1}, x_t)          ŷ_t = readout(out_t)          ℓ_t = loss(ŷ_t, y_t)

    Args:
        module: a cell, or any module that is called as (carry, x) -> (carry, out).
        loss: (prediction, y) -> scalar, as in `online_grads.losses`.
        example: (x, y) of one step, arrays or `jax.ShapeDtypeStruct`, without a batch axis.
        readout: a linen module or one of `online_grads.readouts`; by default the prediction is out_t.
        carry: the first carry, or key -> carry; by default the module's `initialize_carry(key, x.shape)`.
        call: a method, or (module, carry, x) -> (carry, out), in place of the module's call.
        variables: what to start from in place of `module.init`, as trained before.
        rngs: the random streams that a step draws from, as ("dropout",).

    Returns:
        A `Model`, as `online_grads.adapters` explains, with the parameters {"params": ...}; with a readout
        they are {"cell": {"params": ...}, "readout": {"params": ...}}.

    Raises:
        TypeError, ValueError: the module, the readout or the loss does not fit the example, as
            `online_grads.adapters` says.
        ValueError: also if a step draws from a random stream that `rngs` does not name.

    >>> from online_grads import losses
    >>> cell, readout = nn.GRUCell(8, param_dtype=float), nn.Dense(2, param_dtype=float)
    >>> example = jnp.zeros(3), jnp.zeros(2)
    >>> model = from_module(cell, losses.squared_error, example=example, readout=readout)
    >>> params, hidden = model.init(jax.random.key(0))

    The way back, from the params of a learner's state too:

    >>> carry, out = cell.apply(params["cell"], hidden.carry, example[0])
    >>> readout.apply(params["readout"], out).shape
    (2,)
    """
    _check("module", module)
    if isinstance(rngs, str):
        raise TypeError(f"rngs must be a sequence of names, as ({rngs!r},), got {rngs!r}")
    x, y = shapes(example)
    if call is None:
        check_form(module, x, feature_axes(module), sequences=(nn.RNN, nn.Bidirectional))
    draw, *others = _functions(module, variables, tuple(rngs), call)

    def init(key):
        key, key_carry = jax.random.split(key)
        start = lambda: _initialize_carry(module, key_carry, x)
        first = started(carry, key_carry, start, own_call=call is None)
        failure = f"module.init on carry {show(first)} and x {show(x)} fails"
        return *tried(failure, draw, key, first, x, hint=ORDER), first

    def of_readout(readout):
        _check("readout", readout)
        return Functions(f"the readout {type(readout).__name__}", *_functions(readout, None, tuple(rngs)))

    cell = Functions(type(module).__name__, init, *others)
    return build(cell, reading(readout, of_readout), loss, x, y)


def _check(role, module):
    if isinstance(module, type) and issubclass(module, nn.Module):
        raise TypeError(
            f"{role} must be a flax.linen.Module, got the class {module.__name__}: make one, "
            f"{module.__name__}(...)"
        )
    if not isinstance(module, nn.Module):
        raise TypeError(f"{role} must be a flax.linen.Module, got {foreign(module, 'linen') or repr(module)}")


def _functions(module, variables, rngs, call=None):
    """(init, apply, part) of a linen module; its state are its other collections, and the key of `rngs`."""

    def init(key, *arguments):
        key, key_state = jax.random.split(key)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), arguments)
        streams = dict(zip(("params", *rngs), jax.random.split(key, 1 + len(rngs)), strict=True))
        made = module.init(streams, *zeros, method=call) if variables is None else variables
        state = {name: collection for name, collection in made.items() if name != "params"}
        return {"params": made.get("params", {})}, state | ({RNGS: key_state} if rngs else {})

    def apply(params, state, *arguments):
        state = dict(state)
        key, *keys = jax.random.split(state.pop(RNGS), 1 + len(rngs)) if rngs else (None,)
        given, streams = {**params, **state}, dict(zip(rngs, keys, strict=True))
        try:
            with nn.intercept_methods(_watch):
                result, state = module.apply(
                    given, *arguments, rngs=streams, mutable=list(state), method=call
                )
        except InvalidRngError as error:
            raise ValueError(f"{error}; name what a step draws from, as rngs=('dropout',)") from error
        return result, {**state} | ({RNGS: key} if rngs else {})

    return init, apply, without


def _watch(call, args, kwargs, context):
    """Refuse a BatchNorm over one observation where it is called."""
    if isinstance(context.module, nn.BatchNorm) and context.method_name == "__call__":
        given = inspect.signature(nn.BatchNorm.__call__).bind(context.module, *args, **kwargs).arguments
        check_batch_norm(context.module, given["x"], given.get("use_running_average"))
    return call(*args, **kwargs)


def _initialize_carry(module, key, x):
    try:
        return module.initialize_carry(key, x.shape)
    except (AttributeError, NotImplementedError) as error:
        raise ValueError(
            "it has no initialize_carry(key, x.shape); give the first carry, carry=..., "
            "if it is a (carry, x) -> (carry, out) module"
        ) from error
