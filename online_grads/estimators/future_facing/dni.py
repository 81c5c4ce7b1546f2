"""DNI: a learned model of the credit to come, a synthetic gradient.

    c_t = Σ_{u≥t} q_u J_u … J_{t+1} ≈ S(ã_t),        ã_t = [h_t; y_t; 1],   q_t = ∂ℓ_t/∂h_t

    c*_{t-1} = q_{t-1} + S*(ã_t) J_t                target for the step before, S* a frozen copy of S;
                                                    q_{t-1} alone if t begins a new episode
    S ← S − η ∂/∂S ½|S(ã_{t-1}) − c*_{t-1}|²        S* ← S every few steps
    g_t = S(ã_t) ∂h_t/∂θ  +  ∂ℓ_t/∂θ at fixed h_t

It is temporal-difference learning of credit: S(ã_t) already holds q_t and all that is to follow. DNI(b)
replaces what a brain cannot know: J_t by a matrix Ĵ that learns to predict h_t from h_{t-1}, with the
copy's credit squashed by tanh, and the readout's transpose by random feedback:

    Ĵ ← Ĵ − η_J (Ĵ h_{t-1} − h_t) h_{t-1}ᵀ          c*_{t-1} = q_{t-1} + tanh(S*(ã_t)) Ĵ

Cost per step: two VJPs and the synthesiser's own; O(n²) for the linear one; memory n (n + |y| + 1) twice.
Biased, as far as S cannot represent the credit: exact in the limit on a periodic orbit with independent
features. It bootstraps: for a large η, or a J that does not contract, it diverges. Any differentiable cell.

Reference: Jaderberg et al. (2017), Decoupled neural interfaces using synthetic gradients,
arXiv:1608.05343; Marschall, Cho & Savin (2020), arXiv:1907.02649, section 3.3 (DNI, DNI(b)).
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from online_grads.analysis import analyse
from online_grads.arguments import an_optimizer, positive_int
from online_grads.estimators.feedback import Feedback, credit_through, symmetric
from online_grads.estimators.future_facing import stored
from online_grads.estimators.future_facing.synthesiser import checked, features_of, linear, size_of
from online_grads.linearize import Leaves
from online_grads.readouts import Readout
from online_grads.types import Array, Estimator, Model, PyTree


class Lesson(NamedTuple):
    """What the next step is going to teach about this one."""

    features: Array  # [m]  ã_t
    credit: Array  # [n]  q_t
    waiting: Array  # [] bool, whether there was a step


class DniLearned(NamedTuple):
    """The learned part, with what it is about to learn; it survives resets."""

    synthesiser: PyTree  # S's parameters
    copy: PyTree  # S*'s
    optimizer: PyTree
    age: Array  # [] int32, updates since S* was copied
    jacobian: Array | None  # [n, n]  Ĵ, if it is learned
    jacobian_optimizer: PyTree
    lesson: Lesson


class DniState(NamedTuple):
    """The carry of `dni`."""

    hidden: PyTree  # h_t
    learned: DniLearned


def dni(
    model: Model,
    *,
    synthesiser: Readout | None = None,
    features: Callable | None = None,
    inner_optimizer: optax.GradientTransformation | None = None,
    copy_every: int = 5,
    jacobian: Literal["exact", "learned"] = "exact",
    jacobian_optimizer: optax.GradientTransformation | None = None,
    squash: bool = False,
    feedback: Feedback = symmetric,
    axis_name: str | None = None,
    allow_unused: bool = False,
) -> Estimator:
    """A gradient from a learned prediction of the credit to come.

        g_t = S(ã_t) ∂h_t/∂θ          S(ã_{t-1}) → q_{t-1} + S*(ã_t) J_t

    DNI(b) of Marschall et al. is `jacobian="learned", squash=True, feedback=feedback.random(key)`.

    Args:
        model: the model.
        synthesiser: S, an (init, apply) pair, as `online_grads.readouts` makes them: key -> params, and
            (params, features [m]) -> credit [n]. By default linear without bias, starting at zero, so that
            the first steps learn nothing rather than noise.
        features: (hidden, y) -> ã [m]; by default the floating-point entries of both, and 1.
        inner_optimizer: of S, by default `optax.sgd(1e-3)`.
        copy_every: updates of S after which S* becomes a copy of it.
        jacobian: "exact" takes J_t from the transition; "learned" learns Ĵ online, starting from the
            Jacobian at h_0 and x = 0.
        jacobian_optimizer: of a learned Ĵ, by default `optax.sgd(1e-3)`.
        squash: tanh on the credit that S* promises.
        feedback: how the error reaches the hidden state, see `online_grads.feedback`.
        axis_name: the axis under which streams are mapped (`batched`'s): what is learned is averaged over
            it, so that all streams share it. `init` then needs that axis too.
        allow_unused: accept parameters that nothing uses.

    Returns:
        An `Estimator`. The hidden state counts as one vector h [n]. A reset teaches that the credit of the
        step before it was its own loss's. `info["synthesiser_loss"]` is ½|S(ã_{t-1}) − c*|² at the
        segment's last step, and `info["jacobian_loss"]` ½|Ĵ h_{t-1} − h_t|².

    Raises:
        TypeError: an optimizer, the synthesiser, the features or the feedback is none, squash no bool.
        ValueError: copy_every is below 1, the features are no vector, the synthesiser's output is not
            like h [n], Ĵ has an optimizer and is not learned, or the model does not fit together.

    >>> import jax, jax.numpy as jnp
    >>> from online_grads import cells, from_cell, losses, readouts
    >>> cell, readout = cells.gru(2, 4), readouts.linear(4, 1)
    >>> model = from_cell(cell, readout, losses.squared_error, example=(jnp.zeros(2), jnp.zeros(1)))
    >>> params, hidden = model.init(jax.random.key(0))
    >>> estimator = dni(model, synthesiser=readouts.linear(4 + 1 + 1, 4))
    >>> estimator.init(params, hidden, key=jax.random.key(1)).learned.synthesiser["W"].shape
    (4, 6)

    Reference: Marschall et al. (2020), arXiv:1907.02649; Jaderberg et al. (2017), arXiv:1608.05343.
    """
    positive_int("copy_every", copy_every)
    if jacobian not in ("exact", "learned"):
        raise ValueError(f'jacobian must be "exact" or "learned", got {jacobian!r}')
    if jacobian == "exact" and jacobian_optimizer is not None:
        raise ValueError('jacobian_optimizer moves a learned Jacobian: it needs jacobian="learned"')
    if not isinstance(squash, bool):
        raise TypeError(f"squash must be a bool, got {squash!r}")
    optimizer = an_optimizer("inner_optimizer", inner_optimizer, optax.sgd(1e-3))
    optimizer_of_jacobian = an_optimizer("jacobian_optimizer", jacobian_optimizer, optax.sgd(1e-3))
    found = analyse(model, allow_unused=allow_unused)
    leaves = Leaves(found, forward=False)
    n, dtype = found.flat.size, found.flat.dtype
    credit_of = credit_through(feedback, found)
    features = features_of(found) if features is None else features
    m = size_of(features, found)
    synthesiser = linear(m, n, dtype) if synthesiser is None else checked(synthesiser, m, n, dtype)

    def init(params, hidden, *, key):
        found.check_start(params, hidden, key)
        start, age = synthesiser.init(key), jnp.zeros((), jnp.int32)
        if axis_name is not None:  # one start for all streams
            start = jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axis_name)[0], start)
        matrix = jacobian_at(params, hidden) if jacobian == "learned" else None
        moments = optimizer.init(start), optimizer_of_jacobian.init(matrix)
        lesson = Lesson(jnp.zeros(m, dtype), jnp.zeros(n, dtype), jnp.zeros((), bool))
        return DniState(hidden, DniLearned(start, start, moments[0], age, matrix, moments[1], lesson))

    def jacobian_at(params, hidden):
        h, rest = found.flat.split(hidden)
        x = jax.tree.map(lambda leaf: leaf[0], stored.blank(found, 1).pairs[1])
        matrix = jax.jacrev(lambda h: found.transition(found.theta(params), h, rest, x)[0])(h)
        return jnp.where(jnp.isfinite(matrix), matrix, 0)  # x = 0 may be no input at all

    def update(state, params, xs, ys):
        steps = stored.Steps(found, leaves, state.hidden, params, xs, ys, credit_of)
        theta, h = steps.theta, steps.segment.h
        described = jax.vmap(features)(jax.vmap(found.flat.join)(h, steps.segment.rest), ys)

        def body(learned, step):
            pair, h_t, tilde_t, q_t, reset = step
            learned, jacobian_loss = predicted(learned, pair, h_t, ~reset)
            _, q_tm1, waiting = learned.lesson
            target = q_tm1 + jnp.where(reset, 0, brought_back(theta, learned, pair, tilde_t))
            learned, loss = taught(learned, target, waiting)
            learned = learned._replace(lesson=Lesson(tilde_t, q_t, jnp.ones_like(waiting)))
            return learned, (synthesiser.apply(learned.synthesiser, tilde_t), loss, jacobian_loss)

        told = steps.pairs, h, described, steps.seen.credit, steps.resets
        learned, (credit, losses, jacobian_losses) = jax.lax.scan(body, state.learned, told)
        grads = stored.immediate(found, theta, steps.pairs, credit)
        info = {"synthesiser_loss": losses[-1]}
        if jacobian == "learned":
            info["jacobian_loss"] = jacobian_losses[-1]
        return DniState(steps.hidden, learned), steps.estimate(grads, info)

    def predicted(learned, pair, h_t, when):
        """Ĵ moved by one step, and its loss."""
        if jacobian == "exact":
            return learned, None
        h_tm1, _ = found.flat.split(pair[0])
        error = learned.jacobian @ h_tm1 - h_t
        old = learned.jacobian, learned.jacobian_optimizer
        (matrix, moments), _ = learn(optimizer_of_jacobian, jnp.outer(error, h_tm1), old, when)
        learned = learned._replace(jacobian=matrix, jacobian_optimizer=moments)
        return learned, jnp.where(when, 0.5 * jnp.sum(jnp.square(error)), 0)

    def brought_back(theta, learned, pair, tilde_t):
        """S*(ã_t) J_t."""
        promised = synthesiser.apply(learned.copy, tilde_t)
        promised = jnp.tanh(promised) if squash else promised
        if jacobian == "learned":
            return promised @ learned.jacobian
        hidden, x = pair
        h_tm1, rest = found.flat.split(hidden)
        return jax.vjp(lambda h: found.transition(theta, h, rest, x)[0], h_tm1)[1](promised)[0]

    def taught(learned, target, when):
        """S moved towards its target at the step before, and its loss."""

        def loss(S):
            return 0.5 * jnp.sum(jnp.square(synthesiser.apply(S, learned.lesson.features) - target))

        value, grads = jax.value_and_grad(loss)(learned.synthesiser)
        (S, moments), any_taught = learn(optimizer, grads, (learned.synthesiser, learned.optimizer), when)
        age = learned.age + any_taught.astype(jnp.int32)
        copy = jax.tree.map(lambda new, old: jnp.where(age == copy_every, new, old), S, learned.copy)
        learned = learned._replace(synthesiser=S, copy=copy, optimizer=moments, age=age % copy_every)
        return learned, jnp.where(when, value, 0)

    def learn(optimizer, grads, old, when):
        """(params, moments) after one step, the mean over the streams that have something to learn from.

        Returns them with whether any stream has.
        """
        params, moments = old
        grads = jax.tree.map(lambda g: jnp.where(when, g, 0), grads)
        if axis_name is not None:
            streams = jax.lax.psum(when.astype(jnp.int32), axis_name)
            total = jax.lax.psum(grads, axis_name)
            grads = jax.tree.map(lambda g: g / jnp.maximum(streams, 1).astype(g.dtype), total)
            when = streams > 0
        updates, moved = optimizer.update(grads, moments, params)
        new = optax.apply_updates(params, updates), moved
        return jax.tree.map(lambda new, old: jnp.where(when, new, old), new, (params, moments)), when

    return Estimator(init, update)
