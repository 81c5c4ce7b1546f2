"""The only file that looks inside a jaxpr's representation: `jax.extend.core` and `jax.core`.

The rest of the library sees a traced function as a flat list of equations (`trace`), evaluates one at a time
(`bind`) or those that some results need (`values_of`), and asks which inputs matter (`live_inputs`).
"""

import functools
from collections.abc import Callable, Sequence

import jax
from jax.extend import core

# Call primitives that only group equations, with the name of the parameter that holds them.
# Everything else that has a body (scan, while, cond, custom_jvp, custom_vjp) is left whole.
_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat2": "jaxpr",
    "remat": "jaxpr",
}


def trace(function: Callable, *args) -> core.ClosedJaxpr:
    """The jaxpr of `function` at these shapes, all grouping calls dissolved into their equations.

    Args may be arrays or `jax.ShapeDtypeStruct`; they and the results are flat lists of leaves.
    """
    closed = jax.make_jaxpr(function)(*args)
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in closed.jaxpr.invars]
    # Evaluating step by step while stepping into the calls, and tracing that, leaves the making of
    # fresh variables to JAX.
    return jax.make_jaxpr(lambda *leaves: _evaluate(closed.jaxpr, closed.consts, leaves))(*avals)


def _evaluate(jaxpr, consts, args):
    env = dict(zip(jaxpr.constvars, consts, strict=True)) | dict(zip(jaxpr.invars, args, strict=True))
    for equation in jaxpr.eqns:
        values = [read(env, atom) for atom in equation.invars]
        if any(hasattr(atom.aval, "inner_aval") for atom in (*equation.invars, *equation.outvars)):
            raise ValueError("mutable references (jax.new_ref) cannot be followed: return new arrays instead")
        if equation.primitive.name in _CALLS:
            inner = equation.params[_CALLS[equation.primitive.name]]
            inner, inner_consts = (inner.jaxpr, inner.consts) if hasattr(inner, "consts") else (inner, ())
            results = _evaluate(inner, inner_consts, values)
        else:
            results = bind(equation, values)
        env.update(zip(equation.outvars, results, strict=True))
    return [read(env, atom) for atom in jaxpr.outvars]


def read(env: dict, atom):
    """The value of an equation's operand: a literal's own, a variable's from `env`."""
    return atom.val if is_literal(atom) else env[atom]


def is_literal(atom) -> bool:
    """Whether an operand is a constant written into the equation."""
    return isinstance(atom, core.Literal)


def bind(equation, values) -> list:
    """The results of one equation applied to `values`, one per operand (traced like any JAX code)."""
    variables: dict = {}
    for atom, value in zip(equation.invars, values, strict=True):
        if not is_literal(atom):
            variables[atom] = value
    single = _empty().replace(
        invars=list(variables), outvars=equation.outvars, eqns=[equation], effects=equation.effects
    )
    return jax.core.eval_jaxpr(single, (), *variables.values())


def bind_with(equation, values, **params) -> list:
    """The results of an equation without a body, its literal operands and some parameters replaced."""
    results = equation.primitive.bind(*values, **{**equation.params, **params})
    return results if equation.primitive.multiple_results else [results]


@functools.cache
def _empty() -> core.Jaxpr:
    return jax.make_jaxpr(lambda: ())().jaxpr


def run(equations, env: dict) -> None:
    """Compute equations in order; a value that `env` holds already stays as it is."""
    for equation in equations:
        values = [read(env, atom) for atom in equation.invars]
        for variable, value in zip(equation.outvars, bind(equation, values), strict=True):
            env.setdefault(variable, value)


def values_of(closed: core.ClosedJaxpr, outputs: Sequence, env: dict) -> list:
    """The values of some outputs.

    `env` holds the inputs, and may hold intermediate variables, which are then not computed.
    """
    env = env | dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    run(live_equations(closed, outputs, env), env)
    return [read(env, atom) for atom in outputs]


def live_inputs(closed: core.ClosedJaxpr, outputs: Sequence | None = None, known=()) -> list[bool]:
    """Per input: does an output depend on it, if the `known` variables are given?"""
    _, live = _live(closed, outputs, known)
    return [v in live for v in closed.jaxpr.invars]


def live_equations(closed: core.ClosedJaxpr, outputs: Sequence | None = None, known=()) -> list:
    """The equations that an output depends on, in order, if the `known` variables are given."""
    return _live(closed, outputs, known)[0]


def _live(closed, outputs, known) -> tuple[list, set]:
    """(equations in order, variables) that an output depends on, if the `known` variables are given."""
    unknown = lambda atoms: {a for a in atoms if not is_literal(a) and a not in known}
    live, kept = unknown(closed.jaxpr.outvars if outputs is None else outputs), []
    for equation in reversed(closed.jaxpr.eqns):
        if not live.isdisjoint(equation.outvars):
            kept.append(equation)
            live |= unknown(equation.invars)
    return kept[::-1], live


def last_uses(closed: core.ClosedJaxpr) -> list[list]:
    """Per equation the variables that nothing reads after it."""
    needed = {atom for atom in closed.jaxpr.outvars if not is_literal(atom)}
    dying = []
    for equation in reversed(closed.jaxpr.eqns):
        touched = {*equation.outvars, *(atom for atom in equation.invars if not is_literal(atom))}
        dying.append(list(touched - needed))
        needed |= touched
    return dying[::-1]
