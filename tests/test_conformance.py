"""Laws that hold for every estimator of the registry; a new row inherits them."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from online_grads import (
    ESTIMATORS,
    Model,
    averaged,
    batched,
    checkpoint,
    gradient,
    hidden_of,
    learner,
    memory,
    scan,
)
from online_grads.types import Estimate
from tests import models

STREAMS, STEPS, WINDOW = 3, 12, 3
TRANSFORMS = {
    "plain": lambda estimator: estimator,
    "averaged": lambda estimator: averaged(estimator, 2),
}
# what an estimator is made with where its defaults would not show; what it learns must matter
OPTIONS = {
    "kernl": {"sigma": 0.1, "inner_optimizer": optax.sgd(0.5), "reset_every": 5},
    "dodge": {"directions": 2},
    "dni": {"inner_optimizer": optax.sgd(0.1), "copy_every": 2},
    "fbptt": {"horizon": 4},
    "artbp": {"longest": 6, "cut": 0.3},
    "adaptive_tbptt": {"longest": 5, "every": 2, "tolerance": 0.5},
    "es": {"particles": 4},
    "pes": {"particles": 4},
    "es_single": {"particles": 4},
}
# further settings of which the reset law holds by code of its own
SETTINGS = {name: (name, OPTIONS.get(name, {})) for name in ESTIMATORS} | {
    "tbptt, history": ("tbptt", {"history": 6}),
    "pes, 2 segments": ("pes", {"particles": 4, "resample": 2}),
    "dni, b": ("dni", {"jacobian": "learned", "squash": True, "inner_optimizer": optax.sgd(0.1)}),
    "uoro, late": ("uoro", {"direct": False}),
    "dodge, late": ("dodge", {"direct": False}),
    "kf_rtrl, late": ("kf_rtrl", {"direct": False}),
    "snap, order 2": ("snap", {"order": 2}),
    "eprop, 2 hops": ("eprop", {"hops": 2}),
    "optimal_kronecker, rank 2": ("optimal_kronecker", {"rank": 2}),
    "rtrl, blocks of 2": ("rtrl", {"block": 2}),
    "rtrl, few entries": ("rtrl", {}),
}
# a cell whose influence is compressed, and whose output the next step does not read
LINEAR_TIME = ["rtrl, few entries"]
# what they learn they learn once per segment, from its last step, not at every step
PER_SEGMENT = ["adaptive_tbptt"]
# they refuse a learned initial state, which acts on the drives of its step
LOCAL = ["eprop", "rflo", "kernl"]
EVERY = pytest.mark.parametrize("name", ESTIMATORS)
WITH_TRANSFORMS = pytest.mark.parametrize("transform", TRANSFORMS)


@functools.cache
def case(name, transform="plain", resets=False):
    """An estimator on a small GRU, its parameters and hidden state, and a stream."""
    model = models.elstm() if name in LINEAR_TIME else models.gru()
    if resets:
        fixed = name in LOCAL or name in LINEAR_TIME
        model = (models.fixed_start if fixed else models.learned_start)(model)
    name, options = SETTINGS[name]
    estimator = TRANSFORMS[transform](ESTIMATORS[name].constructor(model, **options))
    params, hidden = model.init(jax.random.key(0))
    hidden = jax.tree.map(lambda h: h + 0.3, hidden)
    return estimator, params, hidden, models.stream(model, STEPS)


@functools.cache
def begun(name, transform="plain", resets=False):
    """The estimator's state before the first step."""
    estimator, params, hidden, _ = case(name, transform, resets)
    return jax.jit(estimator.init)(params, hidden, key=jax.random.key(1))


@functools.cache
def compiled_update(name):
    return jax.jit(case(name)[0].update)


@functools.cache
def gradient_of_key(name):
    """The whole stream's, of the key."""
    estimator, params, hidden, (xs, ys) = case(name)
    return jax.jit(lambda key: gradient(estimator, params, hidden, xs, ys, key=key, window=WINDOW))


def close(one, other, tolerance=1e-10):
    chex.assert_trees_all_close(one, other, rtol=tolerance, atol=tolerance)


@EVERY
@WITH_TRANSFORMS
def test_protocol_and_fixed_point(name, transform):
    """The gradient is like params, and the carry keeps structure, shapes, dtypes and size."""
    estimator, params, hidden, (xs, ys) = case(name, transform)
    state = begun(name, transform)
    for k in (1, WINDOW, STEPS):
        moved, estimate = jax.eval_shape(estimator.update, state, params, xs[:k], ys[:k])
        assert isinstance(estimate, Estimate)
        chex.assert_trees_all_equal_shapes_and_dtypes(estimate.grads, params)
        chex.assert_shape(estimate.loss, ())
        assert estimate.outputs.shape == (k, models.OUTPUTS)
        chex.assert_trees_all_equal_shapes_and_dtypes(moved, jax.eval_shape(lambda: state))
    chex.assert_trees_all_equal_shapes_and_dtypes(hidden_of(state), hidden)
    leaves = [leaf for leaf in jax.tree.leaves(state) if not is_key(leaf)]
    key_bytes = [jax.random.key_data(leaf).nbytes for leaf in jax.tree.leaves(state) if is_key(leaf)]
    assert memory(estimator, params, hidden) == sum(leaf.nbytes for leaf in leaves) + sum(key_bytes)


@EVERY
def test_single_precision_stays_single(name):
    """State and gradient keep float32 while 64-bit floats are on."""
    model = models.gru()
    cast = lambda tree: jax.tree.map(lambda s: s.astype(jnp.float32), tree)
    single = model._replace(init=lambda key: cast(model.init(key)), example=cast(model.example))
    estimator = ESTIMATORS[name].constructor(single)
    params, hidden = jax.eval_shape(single.init, jax.random.key(0))
    state = jax.eval_shape(estimator.init, params, hidden, key=jax.random.key(1))
    for k in (1, 2):
        found = jax.eval_shape(estimator.update, state, params, *models.stream(single, k))
        floats = [leaf.dtype for leaf in jax.tree.leaves(found) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        assert set(floats) == {jnp.dtype(jnp.float32)}


@EVERY
def test_one_compilation_and_no_difference_to_eager(name):
    estimator, params, _, (xs, ys) = case(name)
    compiled = compiled_update(name)
    state = begun(name)
    for start in (0, WINDOW, 2 * WINDOW):
        part = xs[start : start + WINDOW], ys[start : start + WINDOW]
        state, estimate = compiled(state, params, *part)
    assert compiled._cache_size() == 1
    with jax.disable_jit():
        eager_state, eager = estimator.update(begun(name), params, xs[:WINDOW], ys[:WINDOW])
    state, estimate = compiled(begun(name), params, xs[:WINDOW], ys[:WINDOW])
    close(estimate, eager)
    close(hidden_of(state), hidden_of(eager_state))


@EVERY
def test_vmap_over_seeds_is_the_loop_over_seeds(name):
    keys = jax.random.split(jax.random.key(2), 3)
    single = gradient_of_key(name)
    together = jax.jit(jax.vmap(single))(keys)
    for number, key in enumerate(keys):
        close(jax.tree.map(lambda leaf, i=number: leaf[i], together), single(key))
    different = [not np.allclose(leaf[0], leaf[1]) for leaf in jax.tree.leaves(together["cell"])]
    assert any(different) == ESTIMATORS[name].stochastic


@EVERY
def test_chunked_is_unchunked_bitwise(name, tmp_path):
    """Also if the state between two chunks has been on disk."""
    estimator, params, hidden, (xs, ys) = case(name)
    online = learner(estimator, optax.sgd(1e-2, momentum=0.9))
    start = jax.jit(online.init)(params, hidden, key=jax.random.key(1))
    run = jax.jit(lambda state, xs, ys: scan(online, state, xs, ys, window=WINDOW))
    whole, _ = run(start, xs, ys)
    half = STEPS // 2
    middle, _ = run(start, xs[:half], ys[:half])
    for between in (middle, checkpoint.restore(checkpoint.save(tmp_path / "half", middle), start)):
        parts, _ = run(between, xs[half:], ys[half:])
        for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
            if is_key(one):
                one, other = jax.random.key_data(one), jax.random.key_data(other)
            np.testing.assert_array_equal(one, other)
    assert run._cache_size() == 2


@EVERY
def test_streams_of_a_batch_are_streams_on_their_own(name):
    estimator, params, hidden, _ = case(name)
    many = batched(estimator, STREAMS)
    xs, ys = models.stream(models.gru(), STREAMS * WINDOW)
    xs, ys = (leaf.reshape(WINDOW, STREAMS, -1) for leaf in (xs, ys))
    state = jax.jit(many.init)(params, hidden, key=jax.random.key(1))
    after, estimate = jax.jit(many.update)(state, params, xs, ys)
    alone = []
    for s in range(STREAMS):
        own = jax.tree.map(lambda leaf, s=s: leaf[s], state.streams)
        own, one = compiled_update(name)(own, params, xs[:, s], ys[:, s])
        alone.append(one.grads)
        close(jax.tree.map(lambda leaf, s=s: leaf[s], hidden_of(after)), hidden_of(own))
        close(estimate.outputs[:, s], one.outputs)
    close(estimate.grads, jax.tree.map(lambda *leaves: sum(leaves) / STREAMS, *alone))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_reset_makes_two_separate_streams(name):
    """k·grads = r·grads before the reset + (k−r)·grads after it, and nothing of the past survives.

    Where gradients come late, both sides count what is owed: + flush.
    """
    estimator, params, _, ((xs, resets), ys) = case(name, resets=True)
    start = begun(name, resets=True)
    update = jax.jit(estimator.update)
    late = estimator.flush is not None
    owed = jax.jit(lambda state: estimator.flush(state, params)[1]) if late else lambda state: nothing
    nothing = jax.tree.map(jnp.zeros_like, params)
    plus = lambda *trees: jax.tree.map(lambda *leaves: sum(leaves), *trees)
    times = lambda count, tree: jax.tree.map(lambda leaf: count * leaf, tree)
    k = 6  # twice r: fewer shapes to compile
    state, _ = update(start, params, (xs[:k], resets[:k]), ys[:k])
    xs, ys, calm = xs[k:], ys[k:], resets[k:]
    for r in (0, 3):
        at = calm.at[r].set(True)
        end, joint = update(state, params, (xs, at), ys)
        until, expected = state, nothing
        if r:
            until, before = update(state, params, (xs[:r], at[:r]), ys[:r])
            expected = times(r, before.grads)
        fresh = with_parts_of(state if name in PER_SEGMENT else until, start, is_learned)
        fresh = with_parts_of(state, fresh, is_key)
        fresh_end, after = update(fresh, params, (xs[r:], at[r:]), ys[r:])
        expected = plus(expected, owed(until), times(k - r, after.grads), owed(fresh_end))
        close(plus(times(k, joint.grads), owed(end)), expected)
        assert_same_end(end, fresh_end)
        if r and not ESTIMATORS[SETTINGS[name][0]].closed_form:
            continue  # what is learned before the reset would be learned from infinity
        poisoned = jax.tree_util.tree_map_with_path(poison, state)
        poisoned_end, poisoned_joint = update(poisoned, params, (xs, at), ys)
        assert_same_end(poisoned_end, fresh_end)
        if r == 0:
            if not late:  # what is owed to the past may well be infinite then
                close(poisoned_joint.grads, joint.grads)
            # without the reset the streams are not separate
            with pytest.raises(AssertionError):
                assert_same_end(update(state, params, (xs, calm), ys)[0], fresh_end)


@EVERY
def test_no_parameter_gets_a_silent_zero_from_a_state_without_numbers(name):
    """An integer hidden state has no derivative: refused, unless nothing is differentiated."""
    model = Model(
        init=lambda key: ({"w": jnp.ones(3), "v": jnp.ones(())}, jnp.zeros((), jnp.int32)),
        transition=lambda params, h, x: h + jnp.argmax(params["w"] * x).astype(jnp.int32),
        loss=lambda params, h, y: ((params["v"] * h.astype(float) - y) ** 2, ()),
        example=(jnp.zeros(3), jnp.zeros(())),
    )
    if ESTIMATORS[name].family != "perturbation":
        with pytest.raises(ValueError, match="no floating-point entry"):
            ESTIMATORS[name].constructor(model)
        return
    estimator = ESTIMATORS[name].constructor(model, sigma=1.0)
    stream = jax.random.normal(jax.random.key(0), (4, 3)), jnp.ones(4)
    grads = gradient(estimator, *model.init(None), *stream, key=jax.random.key(1))
    assert jnp.all(grads["w"] != 0)


@EVERY
def test_what_comes_late_is_stated_and_owed(name):
    assert (case(name)[0].flush is not None) == (ESTIMATORS[name].delay != "none")


@pytest.mark.parametrize("name", [name for name, row in ESTIMATORS.items() if row.delay != "none"])
def test_late_gradients_are_flushed_once(name):
    """A second flush owes nothing, and the readout's part, which is never late, is not in it."""
    estimator, params, _, (xs, ys) = case(name)
    flush = jax.jit(estimator.flush)
    state, _ = compiled_update(name)(begun(name), params, xs[:WINDOW], ys[:WINDOW])
    state, owed = flush(state, params)
    assert any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(owed["cell"]))
    assert not any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(owed["readout"]))
    assert not any(jnp.any(leaf != 0) for leaf in jax.tree.leaves(flush(state, params)[1]))


@pytest.mark.parametrize("name", LOCAL)
def test_local_methods_refuse_a_learned_start(name):
    with pytest.raises(ValueError, match=r"is local.*params\['start'\]"):
        ESTIMATORS[name].constructor(models.learned_start(models.gru()))


@EVERY
def test_nan_is_reported_and_stays_with_its_seed(name):
    estimator, params, hidden, (xs, ys) = case(name)
    online = learner(estimator, optax.sgd(0.1))
    keys = jax.random.split(jax.random.key(1), 3)
    states = jax.jit(jax.vmap(lambda key: online.init(params, hidden, key=key)))(keys)
    sick = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), states.params)
    run = jax.jit(jax.vmap(lambda state: scan(online, state, xs, ys, window=WINDOW)))
    _, healthy = run(states)
    end, metrics = run(states._replace(params=sick))
    np.testing.assert_array_equal(jnp.all(metrics.finite, axis=1), [True, False, True])
    for seed in (0, 2):
        np.testing.assert_array_equal(metrics.loss[seed], healthy.loss[seed])
        assert all(jnp.all(jnp.isfinite(leaf[seed])) for leaf in jax.tree.leaves(end.params))


@EVERY
def test_constructors_work_inside_jit(name):
    _, params, hidden, (xs, ys) = case(name)

    @jax.jit
    def inside(params):
        made = ESTIMATORS[name].constructor(models.gru(), **SETTINGS[name][1])
        return gradient(made, params, hidden, xs, ys, key=jax.random.key(3), window=WINDOW)

    close(inside(params), gradient_of_key(name)(jax.random.key(3)))


def with_parts_of(state, fresh, chosen):
    """The fresh state with those leaves of the other's that are `chosen(leaf, path)`."""
    pick = lambda path, new, old: old if chosen(old, path) else new
    return jax.tree_util.tree_map_with_path(pick, fresh, state)


def poison(path, leaf):
    """Infinity in everything that an estimator carries beside the hidden state and what it learned."""
    keep = is_learned(leaf, path) or "hidden" in fields(path) or not jnp.issubdtype(leaf.dtype, jnp.floating)
    return leaf if keep else jnp.full_like(leaf, jnp.inf)


def fields(path):
    return [getattr(key, "name", None) for key in path]


def is_learned(leaf, path):
    """Parts that survive resets are in a field of this name."""
    return "learned" in fields(path)


def assert_same_end(one, other):
    """Equal carries, keys included."""
    plain = lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf
    close(jax.tree.map(plain, one), jax.tree.map(plain, other))


def is_key(leaf, path=()):
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
