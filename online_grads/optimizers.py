"""The optimizer that a config names, from TOML to optax.

η_t = η / (1 + slowdown √t)          t = steps of the stream so far
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from online_grads.arguments import an_optimizer, shown
from online_grads.tables import ConfigError, Section
from online_grads.types import Array, PyTree

# Optimizers that are made by optax.<name>(learning_rate, ...).
OPTIMIZERS = "adabelief adagrad adam adamw amsgrad lion nadam radam rmsprop sgd yogi".split()

# What a config may call an optimizer's accumulator dtype.
DTYPES = ("bfloat16", "float16", "float32", "float64")


@dataclass(frozen=True)
class OptimizerConfig:
    """An optax optimizer at one learning rate or several."""

    name: str
    learning_rate: tuple[float, ...]
    options: dict[str, Any]
    slowdown: float = 0.0
    lazy: bool = False


def read(own: Section, shared: dict[str, Any]) -> OptimizerConfig:
    """An estimator's optimizer table laid over the shared one; with another name it starts afresh.

    Raises:
        ConfigError: something in the tables is unknown, missing or of a wrong type.
    """
    afresh = "name" in own and own.rest["name"] != shared.get("name", "adam")
    section = own if afresh else Section(own.where if own.rest else "optimizer", {**shared, **own.rest})
    name = section.take("name", str, "adam", one_of=OPTIMIZERS)
    given = section.take("learning_rate", float | tuple[float, ...])
    rates = given if isinstance(given, tuple) else (given,)
    if not rates or not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise section.error("learning_rate", f"expected finite numbers ≥ 0, got {shown(given)}")
    section.distinct("learning_rate", rates)
    slowdown = section.take("slowdown", float, 0.0)
    if not (math.isfinite(slowdown) and slowdown >= 0):
        raise section.error("slowdown", f"expected a finite number ≥ 0, got {slowdown}")
    idle = section.take("lazy", bool, False)
    options = section.options(getattr(optax, name))
    for key, value in options.items():
        # optax annotates both as anything; None is its default of both
        if value is None:
            continue
        if key.endswith("_dtype") and value not in DTYPES:
            raise section.error(key, f"expected one of {', '.join(DTYPES)}, got {shown(value)}")
        if key == "mask" and not _is_mask(value):
            wanted = "true or false, or a table of them with the parameters' names"
            raise section.error(key, f"expected {wanted}, got {shown(value)}")
    return OptimizerConfig(name, tuple(map(float, rates)), options, float(slowdown), idle)


def _is_mask(value: Any) -> bool:
    """Whether it is a bool, or a table of them, which may be nested and is not empty."""
    if isinstance(value, dict):
        return bool(value) and all(map(_is_mask, value.values()))
    return isinstance(value, bool)


def read_one(section: Section, name: str) -> OptimizerConfig | None:
    """The optimizer in the sub-table `name`, at one learning rate; None if the table is not there."""
    table = section.take(name, dict, {})
    if not table:
        return None
    chosen = read(Section(f"{section.where}.{name}", table), {})
    if len(chosen.learning_rate) > 1:
        raise section.error(f"{name}.learning_rate", "expected one number, got a list")
    return chosen


def make(
    chosen: OptimizerConfig, rate: float | Array, *, window: int = 1, frozen: tuple[str, ...] = ()
) -> optax.GradientTransformation:
    """The optax optimizer at one learning rate.

    Args:
        chosen: which, and its options.
        rate: η [].
        window: steps of the stream per update, for the slowdown.
        frozen: parameters that keep their values, as `leaves_under` finds them.

    Raises:
        ConfigError: a dtype has 64 bits and JAX's 64-bit mode is off, where JAX would quietly use 32.

    >>> sgd = make(OptimizerConfig("sgd", (0.1,), {}), 0.1, frozen=("cell",))
    >>> params = {"cell": jnp.ones(()), "readout": jnp.ones(())}
    >>> updates, _ = sgd.update(params, sgd.init(params))
    >>> {name: round(float(update), 3) for name, update in updates.items()}
    {'cell': 0.0, 'readout': -0.1}
    """
    for key, value in chosen.options.items():
        if key.endswith("_dtype") and value is not None and jax.dtypes.canonicalize_dtype(value) != value:
            raise ConfigError(f'{key}: {value} needs precision = "float64" in [run]')
    dtype = jnp.asarray(rate).dtype
    schedule = lambda count: rate / (1 + chosen.slowdown * jnp.sqrt(window * jnp.asarray(count, dtype)))
    constructor: Callable = getattr(optax, chosen.name)
    optimizer = constructor(schedule if chosen.slowdown else rate, **chosen.options)
    optimizer = lazy(optimizer) if chosen.lazy else optimizer
    if not frozen:
        return optimizer
    labels = lambda params: jax.tree.map(
        lambda held: "held" if held else "trained", leaves_under(params, frozen)
    )
    return optax.partition({"trained": optimizer, "held": optax.set_to_zero()}, labels)


def lazy(optimizer: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The optimizer, but an entry of a parameter does not move in a step where its gradient is exactly zero.

        θ_i ← θ_i + u_i where g_i ≠ 0          θ_i ← θ_i elsewhere

    Momentum and weight decay would go on moving what is frozen, such as the early stages of
    `cells.constructive`. The optimizer's own state goes on as always, unlike in `torch.optim.SparseAdam` and
    TensorFlow's LazyAdam. With eligibility traces a gradient is zero only once its trace has died away.

    Args:
        optimizer: any optax `GradientTransformation`.

    Returns:
        An optax `GradientTransformationExtraArgs`.

    Raises:
        TypeError: it is no optimizer.

    >>> momentum = optax.sgd(0.1, momentum=0.9)
    >>> for optimizer in (momentum, lazy(momentum)):
    ...     _, state = optimizer.update(jnp.ones(()), optimizer.init(jnp.ones(())))
    ...     print(round(float(optimizer.update(jnp.zeros(()), state)[0]), 3))
    -0.09
    0.0
    """
    inner = optax.with_extra_args_support(an_optimizer("optimizer", optimizer))

    def update(updates, state, params=None, **others):
        moves, state = inner.update(updates, state, params, **others)
        return jax.tree.map(lambda move, g: jnp.where(g == 0, 0, move), moves, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def leaves_under(params: PyTree, names: tuple[str, ...]) -> PyTree:
    """Which leaves of a pytree are named, as bools: a name is a dotted path, "cell" or "cell.W_rec".

    Raises:
        ValueError: a name is that of no leaf, or every leaf is named.

    >>> leaves_under({"cell": {"W_in": 1, "W_rec": 2}, "readout": 3}, ("cell.W_rec", "readout"))
    {'cell': {'W_in': False, 'W_rec': True}, 'readout': True}
    """
    paths = [
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, _ in jax.tree.leaves_with_path(params)
    ]
    under = lambda path, name: path == name or path.startswith(f"{name}.")
    for name in names:
        if not any(under(path, name) for path in paths):
            raise ValueError(f"no parameter is called {name!r}; the parameters are {', '.join(paths)}")
    named = [any(under(path, name) for name in names) for path in paths]
    if all(named):
        raise ValueError(f"{', '.join(names)} are all the parameters there are")
    return jax.tree.unflatten(jax.tree.structure(params), named)
