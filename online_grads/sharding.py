"""One influence over many devices.

    M_t = J_t M_{t-1} + ∂h_t/∂w          g_t = q_t M_{t-1} + ∂ℓ_t/∂w

A column of M, the influence of one weight, needs J_t, q_t and its own past, and no other column. So
the columns are divided over the D devices of a mesh, and everything else is on each of them. Each
holds 1/D of the influence and does 1/D of J·M; what they exchange in a step is J, the factors of
∂h_t/∂w and the gradients, O(n²) for a dense cell. Where `rtrl` composes the steps of a block, the
factors of all of them, n · post entries each, are on every device: a smaller `block` bounds that.

The program stays the estimator's own: the places of arrays are constraints on it, and XLA's
partitioner derives the rest. The same program runs on one host and, under `jax.distributed`, on many.
"""

import math

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from online_grads.estimators.past_facing.base import PastFacingState
from online_grads.types import Estimator, PyTree


def sharded(estimator: Estimator, mesh: Mesh, *, axis: str | tuple[str, ...] | None = None) -> Estimator:
    """A past-facing estimator whose influence lies over a mesh, divided along its parameters.

        M = [M⁽¹⁾ … M⁽ᴰ⁾],   M⁽ᵈ⁾_t = J_t M⁽ᵈ⁾_{t-1} + (∂h_t/∂w)⁽ᵈ⁾ on device d

    The estimates are the estimator's own, up to the order of sums; they, the parameters and the hidden
    state are on every device. Call `update` inside `jax.jit`, as `learner` and `scan` do under it.
    Transforms go around: `batched(sharded(rtrl(model), mesh), streams)`. On many hosts each passes the
    same parameters and the same stream.

    Args:
        estimator: a past-facing estimator, such as `rtrl(model)`.
        mesh: the devices, for example `jax.make_mesh((8,), ("params",))`. Its axis types do not
            matter, but an Explicit mesh must not be the context (`jax.set_mesh`).
        axis: the mesh axis, or axes, over which the influence is divided; all by default. Devices that
            differ in the other axes do the same work.

    Returns:
        An `Estimator` with the same state. Arrays of the influence that are no larger than the hidden
        state, or have no axis that the number of devices divides, are on every device.

    Raises:
        TypeError: if estimator is none, mesh is no mesh, or, at init, the state is not a `PastFacingState`.
        ValueError: if the mesh has no such axis, or, at init, the number of devices divides no axis of
            the largest array of the influence.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, losses, readouts, rtrl
    >>> cell, readout = cells.vanilla_rnn(2, 8), readouts.linear(8, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> mesh = jax.make_mesh((jax.device_count(),), ("params",))
    >>> estimator = sharded(rtrl(model), mesh)
    >>> params, hidden = model.init(jax.random.key(0))
    >>> state = estimator.init(params, hidden, key=jax.random.key(1))
    >>> state, estimate = jax.jit(estimator.update)(state, params, jnp.ones((5, 2)), jnp.ones((5, 1)))
    >>> parts = [leaf.addressable_shards[0].data.size for leaf in state.influence]
    >>> [part * mesh.size for part in parts] == [leaf.size for leaf in state.influence]
    True
    """
    if not isinstance(estimator, Estimator):
        raise TypeError(f"sharded takes an estimator, such as rtrl(model), got {estimator!r}")
    names = _names(mesh, axis)
    # XLA is to derive what is not constrained: of type Auto, where newer versions of JAX make axes Explicit
    mesh = Mesh(mesh.devices, mesh.axis_names)
    parts = math.prod(mesh.shape[name] for name in names)

    def place(leaf, at=None):
        spec = PartitionSpec() if at is None else PartitionSpec(*[None] * at, names)
        return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, spec))

    def everywhere(tree):
        return jax.tree.map(place, tree)

    def divided(state):
        leaves, structure = jax.tree.flatten(state.influence)
        axes = _axes(state, parts)
        influence = jax.tree.unflatten(structure, map(place, leaves, axes))
        return PastFacingState(everywhere(state.hidden), influence, everywhere(state.key))

    @jax.jit  # or one device would hold the whole influence, for a moment
    def start(params, hidden, key):
        state = estimator.init(*everywhere((params, hidden)), key=everywhere(key))
        if not isinstance(state, PastFacingState):
            raise TypeError(
                f"only a past-facing estimator has an influence to divide, not one with a state like "
                f"{type(state).__name__}; batched and averaged go around it: batched(sharded(...))"
            )
        return divided(state)

    def init(params, hidden, *, key):
        return start(params, hidden, key)

    def update(state, params, xs, ys):
        state, estimate = estimator.update(divided(state), *everywhere((params, xs, ys)))
        return divided(state), everywhere(estimate)

    return Estimator(init, update, estimator.flush)


def _names(mesh, axis) -> tuple[str, ...]:
    """The mesh axes that divide the influence."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {mesh!r}")
    if axis is None:
        return mesh.axis_names
    names = (axis,) if isinstance(axis, str) else axis
    known = isinstance(names, tuple) and names and set(names) <= set(mesh.axis_names)
    if not known or len(set(names)) < len(names):
        raise ValueError(f"axis must name axes of the mesh, {mesh.axis_names}, got {axis!r}")
    return names


def _axes(state: PastFacingState, parts: int) -> list[int | None]:
    """For every array of the influence the axis along which it is divided, if any."""
    shapes = [leaf.shape for leaf in jax.tree.leaves(state.influence)]
    largest = max(map(math.prod, shapes), default=0)
    small = min(sum(leaf.size for leaf in jax.tree.leaves(state.hidden)), largest - 1)
    axes = []
    for shape in shapes:
        found = [axis for axis in _preferred(len(shape), state.influence) if shape[axis] % parts == 0]
        if not found and math.prod(shape) == largest:
            raise ValueError(
                f"the largest array of the influence, {shape}, has no axis along parameters that {parts} "
                "devices divide evenly; choose a hidden size that they divide, or fewer devices"
            )
        axes.append(found[0] if found and math.prod(shape) > small else None)
    return axes


def _preferred(ndim: int, influence: PyTree) -> list[int]:
    """The axes of an array of the influence, the best to divide first.

    M [n, batch, post, pre] is moved as a matrix with n rows. Divided along the first axis of its
    columns it stays divided; along `pre` it would be put together again, and a division of its rows
    makes the product a sum over devices, as large as M. The masked methods' arrays [drives, kept, pre]
    and those in a weight's own shape are divided along the first, everything else ([batch, n, post])
    along the last.
    """
    axes = list(range(ndim))
    if _led_by_hidden(influence):
        return axes[1:]
    return axes if isinstance(influence, list) else axes[-1:] + axes[:-1]


def _led_by_hidden(influence: PyTree) -> bool:
    """Whether this is a plain list of arrays [n, ...] that share n and have further axes, as in `rtrl`."""
    leaves = jax.tree.leaves(influence)
    flat = isinstance(influence, list) and len(leaves) == len(influence)
    return flat and all(leaf.ndim > 1 and leaf.shape[0] == leaves[0].shape[0] for leaf in leaves)
