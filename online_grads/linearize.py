"""A block of steps, linearised: what past-facing estimators ask of a model.

    h_t = f(w, h_{t-1}, x_t),  t = 1 … b        Φ = ∂h_b/∂h_0

Only what is asked for is computed.
"""

from functools import cached_property
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from online_grads.analysis import Analysis
from online_grads.differentiable import require_differentiable
from online_grads.numerics import norm, wide, widened
from online_grads.patterns import Patterns
from online_grads.runs import RunJacobian
from online_grads.structure import Structure, materialised
from online_grads.types import Array, PyTree


class Coordinates(Protocol):
    """What gradients are formed for: a transition in terms of some weights w(θ)."""

    weights: list  # shapes; the first `trained` depend on parameters
    trained: int

    def effective(self, params: list[Array]) -> list[Array]:
        """w from the transition's parameter leaves."""

    def pullback(self, params: list[Array], grads: list[Array]) -> list[Array]:
        """∂/∂θ from the trained weights' ∂/∂w."""

    def move(self, weights: list[Array], h: Array, rest: list, x: PyTree) -> tuple:
        """(h_t [n], rest) of one step."""


class Leaves:
    """Gradients formed for the transition's parameter leaves as they are.

    `forward=False` for an estimator that never pushes a tangent: a custom_vjp then serves too.
    """

    def __init__(self, analysis: Analysis, *, forward: bool = True):
        self._analysis = analysis
        shapes = jax.tree.leaves(analysis.params)
        self.weights = [shapes[number] for number in analysis.moving]
        self.trained = len(self.weights)
        h, rest = jax.eval_shape(analysis.flat.split, analysis.hidden)
        _require_numbers(analysis)
        step = lambda at, given: self.move(at[0], at[1], *given)[0]
        require_differentiable(step, (self.weights, h), (rest, analysis.x), forward=forward)

    def effective(self, params):
        """The leaves themselves."""
        return list(params)

    def pullback(self, params, grads):
        """Nothing to pull back."""
        return list(grads)

    def move(self, weights, h, rest, x):
        """(h_t, rest) of one step."""
        return self._analysis.transition(weights, h, rest, x)


def _require_numbers(analysis: Analysis) -> None:
    """Refuse a hidden state that has no derivative, where parameters move it."""
    if analysis.moving and not analysis.flat.size:
        names = ", ".join(analysis.names[number] for number in analysis.moving)
        raise ValueError(
            f"the hidden state has no floating-point entry, so that no gradient reaches {names}; "
            "es, pes and es_single differentiate nothing"
        )


class Weights(Structure):
    """Gradients formed for the effective weights of the transition, with their structure."""

    def __init__(self, analysis: Analysis, *, dense: bool):
        _require_numbers(analysis)
        shapes = jax.tree.leaves(analysis.params)
        theta = [shapes[number] for number in analysis.moving]
        names = [analysis.names[number] for number in analysis.moving]
        h, rest = jax.eval_shape(analysis.flat.split, analysis.hidden)
        self.shapes = (theta, h, rest, analysis.x)
        super().__init__(analysis.transition, names, *self.shapes, dense=dense)

    @cached_property
    def patterns(self) -> Patterns:
        """What reaches what within a step."""
        return Patterns(self, *self.shapes)

    @cached_property
    def runs(self) -> RunJacobian:
        """The Jacobians of one step, from diagonals."""
        return RunJacobian(self, self.patterns)

    def move(self, weights, h, rest, x):
        """(h_t, rest) of one step."""
        return self.step(weights, h, rest, x)[:2]


class Observation(NamedTuple):
    """The losses of b states and what they say about them."""

    loss: Array  # []  Σ_t ℓ_t
    outputs: PyTree  # [b, ...]
    credit: Array  # [b, n]  ∂ℓ_t/∂h_t
    readout: list  # Σ_t ∂ℓ_t/∂θ at fixed h, for the leaves that the loss uses


class Segment:
    """b steps from one state at fixed weights.

    Attributes:
        weights: the weights, as `coordinates.effective` gives them.
        h, rest: the states after each step, [b, ...].
        before: (h, rest) before each step, [b, ...].
        xs: the inputs, [b, ...]; a model without inputs has no array here, so b is given as `length`.
    """

    def __init__(self, coordinates: Coordinates, weights, h, rest, xs, length: int, *, remat: bool = False):
        """`remat` keeps nothing of a step but the states around it, and takes it anew on the way back."""
        self._coordinates, self.weights, self.xs = coordinates, weights, xs
        self._length = length  # for scans over inputs without any array
        self._start, self._start_rest = h, rest
        trained = coordinates.trained

        def follow(learned, h):
            def body(carry, x):
                moved = coordinates.move([*learned, *weights[trained:]], *carry, x)
                return moved, (carry, moved)

            # a scan body is compiled once: nothing could merge the two passes
            step = jax.checkpoint(body, prevent_cse=False) if remat else body
            before, after = jax.lax.scan(step, (h, rest), xs, length)[1]
            return after[0], (before, after[1])

        self.h, self._pull, (self.before, self.rest) = jax.vjp(follow, weights[:trained], h, has_aux=True)

    @property
    def first(self):
        """(h, rest, x) of the first step, from before it."""
        return self._start, self._start_rest, jax.tree.map(lambda leaf: leaf[0], self.xs)

    @property
    def end(self):
        """(h, rest) after the last step."""
        return self.h[-1], jax.tree.map(lambda leaf: leaf[-1], self.rest)

    def observe(self, analysis: Analysis, readout, ys, credit_of=None) -> Observation:
        """The loss of every step, with the credit that it gives to the state it reads.

        `credit_of(readout, h [n], rest, y)` -> [n] takes the place of the loss's true gradient.
        """

        def losses(readout, h):
            each, outputs = jax.vmap(analysis.loss, in_axes=(None, 0, 0, 0))(readout, h, self.rest, ys)
            return jnp.sum(widened(each)), outputs

        loss, pull, outputs = jax.vjp(losses, readout, self.h, has_aux=True)
        grads, credit = pull(jnp.ones_like(loss))
        if credit_of is not None:
            credit = jax.vmap(credit_of, in_axes=(None, 0, 0, 0))(readout, self.h, self.rest, ys)
        return Observation(loss, outputs, credit, grads)

    def pull(self, credit: Array):
        """(Σ_t credit_t · dh_t/dw, Σ_t credit_t · ∂h_t/∂h_0) from credit [b, n] for the states."""
        return self._pull(credit)

    def pull_end(self, credit: Array):
        """`pull` from credit [n] for the last state alone."""
        return self._pull(jnp.zeros_like(self.h).at[-1].set(credit))

    def pull_end_with_norm(self, credit):
        """credit · ∂h_b/∂w at fixed h_0 from credit [n], and its norm [] (a weight used twice counts twice).

        Of one step it is δ ⊗ v at every drive, so that the norm ‖δ‖ ‖v‖ takes no pass over the weights.
        Needs `Weights`.
        """
        if self._length > 1:
            grads, _ = self.pull_end(credit)
            return grads, norm(grads)
        structure, (h, rest, x) = self._coordinates, self.first
        drives = structure.trained_drives

        def end(perturb):
            moved, _, presynaptic, _ = structure.step(self.weights, h, rest, x, perturb=perturb)
            return moved, presynaptic

        _, pull, presynaptic = jax.vjp(end, structure.zeros(drives), has_aux=True)
        deltas = [materialised(delta) for delta in pull(credit)[0]]
        vectors = [structure.gather(drive, presynaptic) for drive in drives]
        dtype = wide(credit.dtype)
        squared = lambda array: jnp.sum(jnp.square(array.astype(dtype)), axis=1)
        squares = [squared(delta) @ squared(v) for delta, v in zip(deltas, vectors, strict=True)]
        products = [jnp.einsum("bo,bp->bpo", delta, v) for delta, v in zip(deltas, vectors, strict=True)]
        return structure.spread(drives, products), jnp.sqrt(sum(squares, jnp.zeros((), dtype)))

    def push(self, tangent: Array, weights: list | None = None) -> Array:
        """Φ · tangent [n] + ∂h_b/∂w · weights, the latter a tangent of the trained weights."""
        trained = self._coordinates.trained

        def end(h, moving):
            def body(carry, x):
                return self._coordinates.move([*moving, *self.weights[trained:]], *carry, x), None

            return jax.lax.scan(body, (h, self._start_rest), self.xs, self._length)[0][0]

        fixed = self.weights[:trained]
        if weights is None:
            return jax.jvp(lambda h: end(h, fixed), (self._start,), (tangent,))[1]
        return jax.jvp(end, (self._start, fixed), (tangent, weights))[1]

    def jacobians(self):
        """Φ and the factors of the immediate influence ∂h_b/∂w at fixed h_0, exactly.

        One pass backwards with n rows of cotangents, with respect to perturbations of the drives
        rather than to the weights: a weight's influence would be a sum of n × p arrays over steps,
        its factors are stacked vectors.

        Returns:
            Φ [n, n], and per trained drive a pair: (δ [b, n, batch, post], v [b, batch, pre]) with
            ∂h_b/∂w = Σ_t δ_t ⊗ v_t, or, where it has no synapse and v is 1, the sum itself
            [n, batch, post] and None.
        """
        structure = self._coordinates
        drives = structure.trained_drives
        if self._length == 1 and structure.runs.few:
            transfer, reaches, presynaptic = structure.runs(self.weights, *self.first)
            vectors = [structure.gather(drive, presynaptic) for drive in drives]
            return transfer, [
                (reach, None) if structure.is_constant(drive) else (reach[None], v[None])
                for drive, reach, v in zip(drives, reaches, vectors, strict=True)
            ]
        zeros = structure.zeros(drives)
        constant = [structure.is_constant(drive) for drive in drives]

        def body(carry, stored):
            rows, sums = carry
            (h, rest), x = stored

            def step(h, perturb):
                h, _, presynaptic, _ = structure.step(self.weights, h, rest, x, perturb=perturb)
                vectors = [
                    None if c else structure.gather(d, presynaptic)
                    for d, c in zip(drives, constant, strict=True)
                ]
                return h, vectors

            _, pull, vectors = jax.vjp(step, h, zeros, has_aux=True)
            rows, deltas = jax.vmap(pull)(rows)
            sums = [s + d if c else None for s, d, c in zip(sums, deltas, constant, strict=True)]
            deltas = [None if c else d for d, c in zip(deltas, constant, strict=True)]
            return (rows, sums), (deltas, vectors)

        n = self.h.shape[1]
        rows = jnp.eye(n, dtype=self.h.dtype)
        sums = [
            jnp.zeros((n, *z.shape), z.dtype) if c else None for z, c in zip(zeros, constant, strict=True)
        ]
        (rows, sums), (deltas, vectors) = jax.lax.scan(
            body, (rows, sums), (self.before, self.xs), self._length, reverse=True
        )
        return rows, [
            (s, None) if c else (d, v) for s, d, v, c in zip(sums, deltas, vectors, constant, strict=True)
        ]
