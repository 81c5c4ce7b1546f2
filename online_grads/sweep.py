"""One function at every point of a grid: seeds, learning rates, anything that is an array.

    results[i, j, …] = function(a=grid["a"][i], b=grid["b"][j], …)

A whole experiment is a pure function of its key and hyperparameters, so that a sweep is a `vmap` of
it and runs as one program; over a mesh every device takes an equal share of the points.
"""

import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from online_grads.arguments import positive_int
from online_grads.types import Array, PyTree


def sweep(
    function: Callable, grid: Mapping[str, Array], *, mesh: Mesh | None = None, batch: int | None = None
) -> PyTree:
    """A function's results at every point of the product of some values.

    Args:
        function: called as function(**point) with one value per name; pure, returns a pytree of arrays.
            It uses no mesh of its own (`sharded`).
        grid: name -> its values [count, ...], typed keys included.
        mesh: devices that share the points out, over all of its axes; one device without. An Explicit
            mesh must not be the context (`jax.set_mesh`). The last
            point is repeated where the shares would differ. On many hosts each passes the same grid.
        batch: how many points a device runs at a time, vmapped; all of its share by default. Fewer need
            less memory. With 1 they run one by one, not vmapped, and only the branch taken of a
            `lax.cond` is run. On a CPU small models (the state of all points up to 128 KiB) are 1.4 to 5
            times as fast side by side, larger ones are not.

    Returns:
        The results, every leaf with one leading axis per name of the grid, in its order; on every
        device of the mesh, so that every host can read them.

    Raises:
        TypeError: if function is not callable, grid no mapping from names to arrays, or mesh no mesh.
        ValueError: if the grid is empty, a name has no axis of values, or batch is below 1.

    >>> import jax, jax.numpy as jnp, optax
    >>> import online_grads as og
    >>> cell, readout = og.cells.vanilla_rnn(1, 8), og.readouts.linear(8, 1)
    >>> model = og.from_cell(cell, readout, og.losses.squared_error, example=(jnp.zeros(1), jnp.zeros(1)))
    >>> wave = jnp.sin(0.3 * jnp.arange(101.0))[:, None]
    >>> def losses(key, rate):
    ...     learner = og.learner(og.rtrl(model), optax.sgd(rate))
    ...     state = learner.init(*model.init(key), key=key)
    ...     return og.scan(learner, state, wave[:-1], wave[1:], window=4)[1].loss
    >>> grid = {"key": jax.random.split(jax.random.key(0), 3), "rate": jnp.array([0.0, 0.01, 0.1])}
    >>> result = sweep(losses, grid, mesh=jax.make_mesh((jax.device_count(),), ("points",)))
    >>> result.shape
    (3, 3, 25)
    >>> result[:, :, -5:].mean(axis=(0, 2)).argmin().item()  # the best rate, over the seeds
    2
    """
    checked = _checked(function, grid, mesh)
    if batch is not None:
        batch = positive_int("batch", batch)
    counts = [len(values) for values in checked.values()]
    total = math.prod(counts)
    devices = 1 if mesh is None else mesh.size
    each = -(-total // devices)
    every = np.minimum(np.arange(each * devices), total - 1)
    places = dict(zip(checked, np.unravel_index(every, counts), strict=True))

    def share(grid, places):
        """The results of one device's points, which are given by their places in the grid."""
        point = lambda at: function(**{name: values[at[name]] for name, values in grid.items()})
        if batch is None or batch >= max(each, 2):
            return jax.vmap(point)(places)
        return jax.lax.map(point, places, batch_size=None if batch == 1 else batch)

    def run(grid, places):
        results = share(grid, places) if mesh is None else _over(mesh, share)(grid, places)
        return jax.tree.map(lambda leaf: leaf[:total].reshape(*counts, *leaf.shape[1:]), results)

    return jax.jit(run)(checked, places)


def _over(mesh: Mesh, share: Callable) -> Callable:
    """`share` of every device's part of the places, each looping on its own; then all get all results."""
    # of type Auto, where newer versions of JAX make axes Explicit
    mesh = Mesh(mesh.devices, mesh.axis_names)
    split, whole = PartitionSpec(mesh.axis_names), PartitionSpec()
    # the user's function may scan from constants, which the check of varying axes would refuse
    parts = jax.shard_map(share, mesh=mesh, in_specs=(whole, split), out_specs=split, check_vma=False)
    # before the padding is cut off: of uneven shares JAX 0.7 makes a wrong whole (6 of 8, reshaped to [2, 3])
    gathered = lambda leaf: jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, whole))
    return lambda grid, places: jax.tree.map(gathered, parts(grid, places))


def _checked(function, grid, mesh) -> dict[str, Array]:
    """The grid's values as arrays."""
    if not callable(function):
        raise TypeError(f"function must be callable, got {function!r}")
    if not isinstance(grid, Mapping) or not all(isinstance(name, str) for name in grid):
        raise TypeError(f"grid must map names to arrays, got {grid!r}")
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {mesh!r}")
    if not grid:
        raise ValueError("the grid is empty: it needs a name with values")
    checked = {}
    for name, values in grid.items():
        try:
            checked[name] = jnp.asarray(values)
        except (TypeError, ValueError, OverflowError) as error:
            raise TypeError(f"grid[{name!r}] must be an array, got {values!r}") from error
        if checked[name].ndim == 0 or not len(checked[name]):
            raise ValueError(
                f"grid[{name!r}] needs a leading axis of values, got shape {checked[name].shape}"
            )
    return checked
