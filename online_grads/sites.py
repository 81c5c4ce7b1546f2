"""The places where weights act in a step, and the sums that they make up; see `online_grads.structure`."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from online_grads.split import Product, Split


class Site(NamedTuple):
    """A place where a weight acts, read as w [batch, pre, post]; a direct use has one row, v = 1."""

    weight: int  # index into Structure.weights
    axes: tuple  # the weight's batch, contracted and free axes
    batch: int
    pre: int
    post: int
    direct: bool
    dtype: Any  # of the drive


class Drive(NamedTuple):
    """Sites that are only added up, z [batch, post]: a perturbation of one is one of all.

    That is so because nothing else reads a member. The first may be a synapse of a constant matrix.
    """

    sites: tuple[int, ...]  # numbers, synapses first
    batch: int
    post: int
    dtype: Any

    @property
    def at(self) -> int:
        """The number of the site at which a perturbation is added."""
        return self.sites[0]


def sites_of(split: Split) -> list[Site]:
    """Where the weights of a split act: its products, then its direct uses."""
    index = {v: number for number, v in enumerate(split.weights)}
    synapses = [_synapse(product, index[product.weight]) for product in split.products]
    return synapses + [_direct(index[v], v.aval) for v in split.direct]


def drives_of(split: Split, sites: Sequence[Site]) -> list[Drive]:
    """The sums of the split's sites, those with a trained weight first."""
    sums = [numbers for found in split.sums() for numbers in _same_layout(sites, found)]
    constant = lambda drive: all(sites[number].weight >= split.trained for number in drive.sites)
    return sorted(
        (_drive(sites, numbers) for numbers in sums), key=lambda drive: (constant(drive), drive.sites)
    )


def _synapse(product: Product, weight: int) -> Site:
    shape, dtype = product.weight.aval.shape, product.equation.outvars[0].aval.dtype
    batch, pre, post = (math.prod(shape[axis] for axis in axes) for axes in product.matrix_axes)
    return Site(weight, product.matrix_axes, batch, pre, post, direct=False, dtype=dtype)


def _direct(weight: int, aval) -> Site:
    axes = ((), (), tuple(range(aval.ndim)))
    return Site(weight, axes, 1, 1, math.prod(aval.shape), direct=True, dtype=aval.dtype)


def _same_layout(sites: Sequence[Site], numbers: Sequence[int]) -> list[list[int]]:
    """The sum of sites, taken apart where synapses differ in how their drive is laid out."""
    synapses = [number for number in numbers if not sites[number].direct]
    layouts = {(sites[n].batch, sites[n].post, sites[n].dtype) for n in synapses}
    same_dtype = len({sites[n].dtype for n in numbers}) == 1
    return [list(numbers)] if len(layouts) <= 1 and same_dtype else [[number] for number in numbers]


def _drive(sites: Sequence[Site], numbers: Sequence[int]) -> Drive:
    first = sites[numbers[0]]
    return Drive(tuple(numbers), first.batch, first.post, first.dtype)
