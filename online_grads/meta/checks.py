"""What `online_grads.meta` refuses at construction, in words that say which function it is."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from online_grads.analysis import shapes_of
from online_grads.types import PyTree


def traced(failure: str, function: Callable, *given):
    """`shapes_of`, with one line for a function that asks a traced array for its value."""

    def asked(*given):
        try:
            return function(*given)
        except jax.errors.JAXTypeError as error:
            raise TypeError("it needs the value of a traced array, as float() and if do") from error

    return shapes_of(failure, asked, *given)


def check_parts(name: str, given, *parts: str) -> None:
    """Refuse what lacks one of these functions."""
    if not all(callable(getattr(given, part, None)) for part in parts):
        raise TypeError(f"{name} must have the functions {', '.join(parts)}, got {given!r}")


def check_pair(expected: str, given) -> None:
    """Refuse anything but a tuple of two."""
    if not (isinstance(given, tuple) and len(given) == 2):
        raise TypeError(f"{expected}, got {given}")


def check_scalar(name: str, given) -> None:
    """Refuse anything but the shape of a floating-point scalar."""
    if getattr(given, "shape", None) != () or not jnp.issubdtype(given.dtype, jnp.floating):
        raise TypeError(f"{name} must be a floating scalar, got {given}")


def check_floating(name: str, tree: PyTree) -> None:
    """Refuse a tree with a leaf that is no floating-point array, naming it."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{name}{jax.tree_util.keystr(path)} must be floating, got {leaf.dtype}")


def check_learned(theta: PyTree, begins: list[int], learned: set[int]) -> None:
    """Refuse leaves of θ that the optimizer's init reads (`begins`) and nothing else does (`learned`)."""
    for number, (path, _) in enumerate(jax.tree.leaves_with_path(theta)):
        if number in begins and number not in learned:
            raise ValueError(
                f"θ{jax.tree_util.keystr(path)} is read by the optimizer's init and by no step of training: "
                "its hypergradient would be zero. optax.inject_hyperparams keeps it in its state: "
                "make the optimizer of θ without it"
            )


def check_step(transition: Callable, params: PyTree, hidden: PyTree, x: PyTree) -> None:
    """Refuse a step that fails, or that does not keep the hidden state's structure, shapes and dtypes."""
    moved = traced("a step of training fails", transition, params, hidden, x)
    before, after = (
        jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree) for tree in (hidden, moved)
    )
    if jax.tree.flatten(before) != jax.tree.flatten(after):
        raise ValueError(f"a step of training turns the shapes {before} into {after}")
