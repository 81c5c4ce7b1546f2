"""Which outputs can react to which inputs: boolean patterns, over-approximated.

The equations of a function's JVP are walked with boolean dependence on the tangent: elementwise
operations OR their operands, data movement moves them, reductions OR along axes, constants are
read by value (their zeros annihilate in products, constant predicates select), and everything
unknown is dense. A pattern that is too large makes an estimator slower, one that is too small
makes it wrong: so every rule errs towards dependence.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import sparse

from online_grads import jaxprs, known

# Linear or not, these act entry by entry and have no other dependence.
_ELEMENTWISE = set(
    "add add_any sub div neg exp exp2 log log1p expm1 tanh tan sin cos asin acos atan atan2 sinh cosh "
    "asinh acosh atanh logistic erf erfc erf_inv lgamma digamma pow integer_pow sqrt rsqrt cbrt square "
    "abs sign max min clamp rem real imag complex conj convert_element_type reduce_precision copy copy_p "
    "nextafter".split()
)
# f(0) = 0: what is provably zero stays zero.
_ZERO_PRESERVING = set(
    "neg abs sign tanh sin sinh tan sqrt cbrt square convert_element_type copy copy_p real".split()
)
# Entries of the result are entries of the operands; the number says how many operands hold data.
_MOVEMENT = {
    "transpose": None,
    "reshape": None,
    "broadcast_in_dim": None,
    "squeeze": None,
    "expand_dims": None,
    "slice": None,
    "split": None,
    "rev": None,
    "concatenate": None,
    "stack": None,
    "unstack": None,
    "tile": None,
    "pad": None,
    "gather": 1,
    "dynamic_slice": 1,
}
_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod"}


class _Known(NamedTuple):
    """What is known of a value before it is computed."""

    shape: tuple
    value: Any = None  # the array, where it is a concrete constant
    nonzero: Any = True  # bool array of shape, or True: which entries may be non-zero
    depends: Any = None  # csr [size, inputs] or None: which inputs each entry depends on


def dependence(function: Callable, inputs, *, given=(), products: bool = True) -> sparse.csr_matrix:
    """Which entries of `function(x, *given)` can change when entries of the vector x [m] do.

    Args:
        function: differentiable, returns one array.
        inputs: shape and dtype of x.
        given: further arguments, pytrees of shapes, of unknown value.
        products: False leaves out what passes through a product that sums over entries of x, except
            within the groups of a batch axis.

    Returns:
        A boolean matrix [size of the result, m].
    """

    def tangent_out(tangent, x, *given):
        return jax.jvp(lambda x: function(x, *given), (x,), (tangent,))[1]

    (result,) = _walk(tangent_out, inputs, inputs, *given, seed=True, products=products)
    size = int(np.prod(result.shape))
    return (
        sparse.csr_matrix((size, inputs.shape[0]), dtype=bool) if result.depends is None else result.depends
    )


def may_be_nonzero(function: Callable, *given) -> list[np.ndarray]:
    """For every result of `function(*given)` the entries that are not provably zero."""
    results = _walk(function, *given, seed=False, products=True)
    return [np.broadcast_to(result.nonzero, result.shape) for result in results]


def _walk(function, *args, seed, products) -> list[_Known]:
    leaves, treedef = jax.tree.flatten(args)
    closed = jaxprs.trace(
        lambda *leaves: jax.tree.leaves(function(*jax.tree.unflatten(treedef, leaves))), *leaves
    )
    with jax.ensure_compile_time_eval():
        env = {v: _constant(c) for v, c in zip(closed.jaxpr.constvars, closed.consts, strict=True)}
        env.update({v: _Known(v.aval.shape) for v in closed.jaxpr.invars})
        if seed:
            first = closed.jaxpr.invars[0]
            size = first.aval.shape[0]
            env[first] = _Known((size,), depends=sparse.identity(size, dtype=bool, format="csr"))
        of = lambda atom: _constant(atom.val) if jaxprs.is_literal(atom) else env[atom]
        for equation, dying in zip(closed.jaxpr.eqns, jaxprs.last_uses(closed), strict=True):
            results = _apply(equation, [of(atom) for atom in equation.invars], products)
            env.update(zip(equation.outvars, results, strict=True))
            # the pattern of an embedding table can be large: keep only what is still read
            for variable in dying:
                del env[variable]
        return [of(atom) for atom in closed.jaxpr.outvars]


def _constant(value) -> _Known:
    if isinstance(value, jax.core.Tracer):
        return _Known(jnp.shape(value))
    if jax.dtypes.issubdtype(jnp.result_type(value), jax.dtypes.extended):
        return _Known(jnp.shape(value), value)
    value = np.asarray(value)
    return _Known(value.shape, value, value != 0)


def _apply(equation, operands: list[_Known], products: bool) -> list[_Known]:
    """What is known of an equation's results."""
    name, shapes = equation.primitive.name, [v.aval.shape for v in equation.outvars]
    if all(o.value is not None for o in operands) and not equation.effects:
        return [_constant(value) for value in known.compute(equation, [o.value for o in operands])]
    smooth = [jnp.issubdtype(v.aval.dtype, jnp.inexact) for v in equation.outvars]
    if name in _MOVEMENT and all(o.value is not None for o in operands[_MOVEMENT[name] or len(operands) :]):
        return _move(equation, operands, _MOVEMENT[name] or len(operands))
    if not any(smooth) or name == "stop_gradient":
        return [_Known(shape) for shape in shapes]
    if name == "mul":
        return [_multiply(shapes[0], *operands)]
    if name in ("sub", "add", "add_any"):
        nonzero = np.logical_or(*(o.nonzero for o in operands))
        return [_Known(shapes[0], None, nonzero, _union(shapes[0], operands))]
    if name == "select_n":
        return [_select(shapes[0], *operands)]
    if name == "dot_general":
        contracted, batch = equation.params["dimension_numbers"]
        mixing = contracted[0] and not batch[0]
        return [_dot(equation, *operands) if products or not mixing else _Known(shapes[0])]
    if name in _REDUCTIONS:
        return [_reduce(equation, operands[0])]
    if name in _ELEMENTWISE:
        nonzero = operands[0].nonzero if name in _ZERO_PRESERVING else True
        return [_Known(shape, None, nonzero, _union(shape, operands)) for shape in shapes]
    return [
        _Known(shape, None, True, _any_of(shape, operands)) if s else _Known(shape)
        for shape, s in zip(shapes, smooth, strict=True)
    ]


def _size(shape) -> int:
    return int(np.prod(shape))


def _spread(operand: _Known, shape) -> sparse.csr_matrix:
    """The operand's dependence, repeated along the axes that the operation broadcasts."""
    if tuple(operand.shape) == tuple(shape):
        return operand.depends
    entries = np.arange(_size(operand.shape)).reshape(operand.shape)
    return operand.depends[np.broadcast_to(entries, shape).ravel()]


def _union(shape, operands):
    parts = [_spread(o, shape) for o in operands if o.depends is not None]
    return sum(parts[1:], parts[0]) if parts else None


def _any_of(shape, operands):
    """Every entry depends on all that any operand depends on."""
    parts = [o.depends for o in operands if o.depends is not None]
    if not parts:
        return None
    row = sparse.csr_matrix(sum(sparse.csr_matrix(part.sum(axis=0) > 0) for part in parts))
    return row[np.zeros(_size(shape), int)]


def _rows(matrix, keep):
    """The matrix with the rows outside the boolean vector `keep` emptied."""
    return sparse.csr_matrix(sparse.diags(keep.astype(bool), dtype=bool) @ matrix)


def _multiply(shape, left: _Known, right: _Known) -> _Known:
    parts = []
    for one, other in ((left, right), (right, left)):
        if one.depends is not None:
            keep = np.broadcast_to(other.nonzero, shape).ravel()
            spread = _spread(one, shape)
            parts.append(spread if keep.all() else _rows(spread, keep))
    nonzero = np.logical_and(left.nonzero, right.nonzero)
    return _Known(shape, None, nonzero, sum(parts[1:], parts[0]) if parts else None)


def _select(shape, which: _Known, *cases: _Known) -> _Known:
    if which.value is None:
        nonzero = np.logical_or.reduce([np.broadcast_to(c.nonzero, shape) for c in cases])
        return _Known(shape, None, nonzero, _union(shape, cases))
    chosen = np.broadcast_to(which.value, shape).astype(int)
    nonzero = np.choose(chosen, [np.broadcast_to(c.nonzero, shape) for c in cases])
    parts = [
        _rows(_spread(case, shape), (chosen == number).ravel())
        for number, case in enumerate(cases)
        if case.depends is not None
    ]
    return _Known(shape, None, nonzero, sum(parts[1:], parts[0]) if parts else None)


def _move(equation, operands, data: int) -> list[_Known]:
    """Run the movement on entry numbers, and move what is known accordingly."""
    sizes = [_size(o.shape) for o in operands[:data]]
    starts = np.cumsum([0, *sizes])
    numbers = [
        np.arange(start, start + size, dtype=np.int32).reshape(o.shape)
        for start, size, o in zip(starts[:-1], sizes, operands, strict=False)
    ]
    values = [o.value for o in operands[data:]]
    # a gather out of bounds fills in a number that is nobody's: it points at an empty last row
    nobody = {"fill_value": -1} if "fill_value" in equation.params else {}
    bind = partial(jaxprs.bind_with, **nobody)
    moved = [np.asarray(m) for m in known.compute(equation, [*numbers, *values], bind)]
    moved = [np.where((m < 0) | (m >= starts[-1]), starts[-1], m) for m in moved]
    nonzero = np.concatenate(
        [np.broadcast_to(o.nonzero, o.shape).ravel() for o in operands[:data]] + [[True]]
    )
    depends = None
    if any(o.depends is not None for o in operands[:data]):
        width = next(o.depends.shape[1] for o in operands[:data] if o.depends is not None)
        empty = lambda rows: sparse.csr_matrix((rows, width), dtype=bool)
        parts = [
            o.depends if o.depends is not None else empty(size)
            for o, size in zip(operands, sizes, strict=False)
        ]
        depends = sparse.vstack([*parts, empty(1)], format="csr")
    return [
        _Known(m.shape, None, nonzero[m], depends if depends is None else depends[m.ravel()]) for m in moved
    ]


def _reduce(equation, operand: _Known) -> _Known:
    shape = equation.outvars[0].aval.shape
    if operand.depends is None:
        return _Known(shape)
    axes = equation.params["axes"]
    target = np.expand_dims(np.arange(_size(shape)).reshape(shape), axes)
    target = np.broadcast_to(target, operand.shape).ravel()
    gather = sparse.csr_matrix(
        (np.ones(target.size, bool), (target, np.arange(target.size))), (_size(shape), target.size)
    )
    return _Known(shape, None, True, gather @ operand.depends)


def _dot(equation, left: _Known, right: _Known) -> _Known:
    """out[b, m, n] = Σ_k left[b, m, k] right[b, n, k]."""
    shape = equation.outvars[0].aval.shape
    contracted, batch = equation.params["dimension_numbers"]

    def arranged(operand, side, array):
        free = [a for a in range(len(operand.shape)) if a not in (*contracted[side], *batch[side])]
        array = np.transpose(array.reshape(operand.shape), (*batch[side], *free, *contracted[side]))
        count = [_size([operand.shape[a] for a in axes]) for axes in (batch[side], free, contracted[side])]
        return array.reshape(count)

    number = [arranged(o, i, np.arange(_size(o.shape))) for i, o in enumerate((left, right))]
    nonzero = [arranged(o, i, np.broadcast_to(o.nonzero, o.shape)) for i, o in enumerate((left, right))]
    b, m, k = number[0].shape
    n = number[1].shape[1]
    out = np.arange(b * m * n).reshape(b, m, n)
    parts = []
    for one, operand in enumerate((left, right)):
        if operand.depends is None:
            continue
        other = nonzero[1 - one]
        if other.all():
            # every entry along the other's free axis sees the same union over k
            rows = np.repeat(np.arange(number[one].shape[0] * number[one].shape[1]), k)
            ones = np.ones(rows.size, bool)
            union = sparse.csr_matrix(
                (ones, (rows, number[one].ravel())), (_size(number[one].shape[:2]), _size(operand.shape))
            )
            union = union @ operand.depends
            own = np.arange(union.shape[0]).reshape(number[one].shape[:2])
            own = np.broadcast_to(own[:, :, None] if one == 0 else own[:, None, :], (b, m, n))
            parts.append(union[own.ravel()])
        else:
            mine = number[one][:, :, None, :] if one == 0 else number[one][:, None, :, :]
            keep = other[:, None, :, :] if one == 0 else other[:, :, None, :]
            keep = np.broadcast_to(keep, (b, m, n, k))
            rows = np.broadcast_to(out[..., None], keep.shape)[keep]
            columns = np.broadcast_to(mine, keep.shape)[keep]
            select = sparse.csr_matrix(
                (np.ones(rows.size, bool), (rows, columns)), (out.size, _size(operand.shape))
            )
            parts.append(select @ operand.depends)
    return _Known(shape, None, True, sum(parts[1:], parts[0]) if parts else None)
