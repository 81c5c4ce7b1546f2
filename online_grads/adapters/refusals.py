"""What the adapters refuse, and the words for it: one step takes one observation, as (carry, x)."""

import inspect
import math
from collections.abc import Callable, Sequence

import jax

from online_grads.types import PyTree

ORDER = "; a module is called as (carry, x) and returns (carry, out), in this order"
UNNAMED = (
    "; no axis has a name here, there is one observation and no batch: "
    "what needs a batch, as BatchNorm in training, is not served, LayerNorm is"
)
FRAMEWORKS = {"flax.linen.": "linen", "flax.nnx.": "nnx", "equinox.": "equinox"}


def tried(failure: str, function: Callable, *args, hint: str = ""):
    """What a user's function returns; what it raises becomes a ValueError that begins with `failure`.

    A TypeError may come from the wrong arguments, and ends with `hint`.
    """
    try:
        return function(*args)
    except Exception as error:
        if "unbound axis name" in str(error):
            hint = UNNAMED
        elif not isinstance(error, TypeError):
            hint = ""
        raise ValueError(f"{failure}: {error}{hint}") from error


def show(tree: PyTree) -> str:
    """Shapes in words.

    >>> import jax.numpy as jnp
    >>> show((jnp.zeros(3, jnp.float32), jnp.zeros((), jnp.int32)))
    '(float32[3], int32[])'
    """
    return str(jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)).replace("'", "")


def foreign(module, here: str) -> str | None:
    """In words a module, or a class of them, that another adapter takes; None for anything else.

    >>> import flax.linen as nn
    >>> foreign(nn.Dense(2), here="nnx")
    'Dense, which online_grads.adapters.linen takes'
    """
    kind = module if isinstance(module, type) else type(module)
    bases = [base.__module__ for base in kind.__mro__ if base.__name__ == "Module"]
    for package, adapter in FRAMEWORKS.items():
        if adapter != here and any(base.startswith(package) for base in bases):
            return f"{kind.__name__}, which online_grads.adapters.{adapter} takes"
    return None


def check_form(module, x: PyTree, axes: int | None, sequences: tuple[type, ...] = ()) -> None:
    """Refuse a module that runs over sequences, that does not take (carry, x), or an x that is a batch.

    Args:
        module: called as it is.
        x: the shape of one observation.
        axes: how many axes x has; None if any number will do.
        sequences: the classes that run over sequences.

    Raises:
        TypeError: a module of another form.
        ValueError: x has more axes.
    """
    name = type(module).__name__
    if isinstance(module, sequences):
        raise TypeError(
            f"{name} runs over a whole sequence, and one step takes one observation: give its cell"
        )
    if not _takes_two(module):
        raise TypeError(
            f"{name} is no (carry, x) -> (carry, out) module; "
            "call=lambda module, carry, x: ... says how to call a module of another form"
        )
    if axes is not None and isinstance(x, jax.ShapeDtypeStruct) and x.ndim > axes:
        raise ValueError(
            f"{name} takes one observation, an x of {axes} {'axis' if axes == 1 else 'axes'}, got {show(x)}; "
            "online_grads.batched learns from a batch of streams"
        )


def feature_axes(cell) -> int | None:
    """How many axes flax says that one observation of a cell has."""
    try:
        return cell.num_feature_axes
    except (AttributeError, NotImplementedError):
        return None


def check_batch_norm(norm, x: jax.Array, use_running_average: bool | None) -> None:
    """Refuse flax's BatchNorm in training where its mean is of one entry.

        mean = x,  var = 0          x̂ = (x - mean) / √(var + ε) = 0,  ∂x̂/∂x = 0

    Raises:
        ValueError: there is nothing but the feature axes, and no named axis.
    """
    running = norm.use_running_average if use_running_average is None else use_running_average
    axes = norm.axis if isinstance(norm.axis, Sequence) else (norm.axis,)
    if not running and norm.axis_name is None and x.size == math.prod(x.shape[axis] for axis in axes):
        raise ValueError(
            f"{type(norm).__name__} on {show(x)} normalises over a batch, and here is one observation: its "
            "output would be constant, with no gradient; use_running_average=True, or LayerNorm"
        )


def _takes_two(module) -> bool:
    """Whether it is called with two positional arguments or more, none of them optional."""
    if not callable(module):
        return False
    kinds = inspect.Parameter
    _, *parameters = inspect.signature(type(module).__call__).parameters.values()
    positional = [p for p in parameters if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    given = sum(p.default is kinds.empty for p in positional)
    return given >= 2 or any(p.kind is kinds.VAR_POSITIONAL for p in parameters)
