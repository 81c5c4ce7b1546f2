"""Trace conditioning and patterning, against a replay of what the streams show."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import cells, readouts, tasks

STEPS = 20_000
DISCOUNTS = {"trace_conditioning": 0.9, "trace_patterning": 0.9}


def draw(task, state, length):
    return jax.jit(task.draw, static_argnums=1)(state, length)


def stream(task, length=STEPS, seed=0):
    return jax.tree.map(np.asarray, draw(task, task.init(jax.random.key(seed)), length)[1])


@functools.cache
def build(name):
    return tasks.TASKS[name]()


@functools.cache
def long_stream(name, seed=0):
    return stream(build(name), 5 * STEPS, seed)


def returns(us, discount):
    """G_t by going back from the end, where nothing is known to follow."""
    g, following = np.zeros(len(us)), 0.0
    for t in reversed(range(len(us))):
        g[t] = following = us[t] + discount * following
    return g


def beginnings(on):
    """The steps at which a signal [T] of zeros and ones goes on."""
    return np.flatnonzero(np.diff(on, prepend=0) == 1)


@pytest.mark.parametrize("name", DISCOUNTS)
def test_y_tells_the_next_step_and_the_return(name):
    xs, ys = jax.tree.map(lambda rows: rows[:STEPS], long_stream(name))
    np.testing.assert_array_equal(ys.x[:-1], xs[1:])
    np.testing.assert_array_equal(ys.cumulant, ys.x[:, 0])
    expected, known = returns(ys.cumulant, DISCOUNTS[name]), STEPS - 1000
    np.testing.assert_allclose(ys.value[:known], expected[:known], atol=1e-7)
    # a discount that is a little different, or a step too early, is another return
    assert np.abs(ys.value - returns(ys.cumulant, 0.89))[:known].max() > 1e-3
    assert np.abs(ys.value[:known] - expected[1 : known + 1]).max() > 1e-2


@pytest.mark.parametrize(
    ("options", "discount"),
    [
        ({"isi": (1, 3), "iti": (2, 2), "cs_length": 1, "discount": 0.99}, 0.99),
        ({"isi": (14, 26)}, 0.95),
        ({"discount": 0.0}, 0.0),
        ({"dtype": jnp.float32}, 0.9),
    ],
)
def test_the_return_for_other_timings(options, discount):
    task = tasks.trace_conditioning(**options)
    _, ys = stream(task, 5000)
    expected = returns(ys.cumulant.astype(float), discount)
    atol = 1e-6 if task.example[0].dtype == jnp.float32 else 1e-6 / (1 - discount)
    np.testing.assert_allclose(ys.value[:2000], expected[:2000], atol=atol)


def test_trace_conditioning_keeps_its_times():
    xs, _ = stream(tasks.trace_conditioning(isi=(7, 13), iti=(80, 120), cs_length=4, us_length=2))
    us, cs = xs[:, 0], xs[:, 1]
    cs_on, us_on = beginnings(cs), beginnings(us)
    trials = len(us_on) - 1
    assert cs_on[0] == 0
    isi, iti = us_on[:trials] - cs_on[:trials], cs_on[1 : trials + 1] - us_on[:trials]
    # both ends of both ranges, and nothing outside
    assert set(isi) == set(range(7, 14))
    assert (iti.min(), iti.max()) == (80, 120)
    assert len(set(iti)) == 41
    np.testing.assert_allclose(isi.mean(), 10, atol=4 * 2 / trials**0.5)
    np.testing.assert_allclose(iti.mean(), 100, atol=4 * 12 / trials**0.5)
    np.testing.assert_array_equal(np.flatnonzero(cs[: cs_on[-1]]), (cs_on[:-1, None] + np.arange(4)).ravel())
    np.testing.assert_array_equal(np.flatnonzero(us[: us_on[-1]]), (us_on[:-1, None] + np.arange(2)).ravel())


def test_distractors_fire_independently_and_stay_on():
    xs, _ = stream(tasks.trace_conditioning(distractor_length=4))
    noise = xs[:, 2:]
    chance = 1 / (10 * np.arange(1, 11))
    np.testing.assert_allclose(noise.mean(0), 1 - (1 - chance) ** 4, atol=0.02)
    # the same firings, seen one by one: a firing lasts, and another one meanwhile only prolongs it
    fired = stream(tasks.trace_conditioning(distractor_length=1))[0][:, 2:]
    np.testing.assert_allclose(fired.mean(0), chance, atol=0.01)
    np.testing.assert_array_equal(noise[:-3], np.max([fired[i : STEPS - 3 + i] for i in range(4)], axis=0))
    assert np.abs(np.corrcoef(fired.T) - np.eye(10)).max() < 0.04
    assert stream(tasks.trace_conditioning(distractors=0))[0].shape == (STEPS, 2)


def trials_of(xs):
    """(patterns [trials, 6], steps from pattern to US, 0 where none follows)."""
    shown = np.flatnonzero(xs[:, 1:7].any(1))
    us = np.flatnonzero(xs[:, 0])
    return xs[shown[:-1], 1:7], np.array(
        [sum(u - a for u in us[(us > a) & (us < b)]) for a, b in itertools.pairwise(shown)]
    )


def test_trace_patterning_has_ten_valid_patterns():
    chosen = []
    for seed in range(2):
        patterns, isi = trials_of(long_stream("trace_patterning", seed)[0])
        np.testing.assert_array_equal(patterns.sum(1), np.full(len(patterns), 3))
        codes = (patterns @ 2 ** np.arange(6)).astype(int)
        followed, not_followed = set(codes[isi > 0]), set(codes[isi == 0])
        assert (len(followed), len(not_followed), followed & not_followed) == (10, 10, set())
        assert set(isi[isi > 0]) == set(range(24, 37))
        np.testing.assert_allclose((isi > 0).mean(), 0.5, atol=4 * 0.5 / len(isi) ** 0.5)
        chosen.append(followed)
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize("valid", [1, 4])
def test_trace_patterning_of_another_size(valid):
    task = tasks.trace_patterning(bits=4, active=1, valid=valid, isi=(2, 3), iti=(4, 5), distractors=0)
    xs, _ = stream(task, 3000)
    assert xs.shape == (3000, 5)
    shown = np.flatnonzero(xs[:, 1:].any(1))
    np.testing.assert_array_equal(xs[shown, 1:].sum(1), np.ones(len(shown)))
    np.testing.assert_allclose(xs[:, 0].sum() / len(shown), valid / 4, atol=0.09)


@pytest.mark.parametrize("name", DISCOUNTS)
def test_references_are_what_constants_score(name):
    task = build(name)
    values = np.concatenate([long_stream(name, seed)[1].value for seed in range(2)])
    measured = [np.mean(values**2), np.var(values)]
    assert list(task.references) == ["always zero", "the best constant"]
    np.testing.assert_allclose(list(task.references.values()), measured, rtol=0.08)
    score = jax.vmap(task.score)
    _, ys = long_stream(name)
    shown = score(np.zeros(5 * STEPS), ys).mean()
    np.testing.assert_allclose(shown, np.mean(ys.value**2), rtol=1e-12)


def test_references_are_exact_where_nothing_is_random():
    task = tasks.trace_conditioning(isi=(3, 3), iti=(5, 5), cs_length=1, us_length=2, discount=0.7)
    period = stream(task, 8)[1].value
    expected = [np.mean(period**2), np.var(period)]
    np.testing.assert_allclose(list(task.references.values()), expected, rtol=1e-7)
    other = tasks.trace_conditioning(isi=(3, 3), iti=(5, 6), cs_length=1, us_length=2, discount=0.7)
    assert not np.allclose(list(other.references.values()), expected, rtol=1e-3)


@pytest.mark.parametrize("name", DISCOUNTS)
def test_with_a_trace_decay_a_gradient_is_that_of_the_prediction(name):
    cell = cells.vanilla_rnn(build(name).example[0].shape[0], 2)
    plain, traced = build(name), tasks.TASKS[name](trace_decay=0.9)
    assert plain.traces is None
    assert traced.traces is not None
    params, hidden = plain.build(cell, readouts.linear(2, 1)).init(jax.random.key(0))
    y = jax.tree.map(lambda rows: rows[0], long_stream(name)[1])
    shown = []
    for task in (plain, traced):
        loss, outputs = task.build(cell, readouts.linear(2, 1)).loss(params, hidden, y)
        shown.append(task.score(outputs, y))
    assert loss == outputs.value
    np.testing.assert_allclose(shown, 2 * [(outputs.value - y.value) ** 2], rtol=1e-12)
    with pytest.raises(ValueError, match=r"trace_decay must be in \[0, 1\], got 1.1"):
        tasks.TASKS[name](trace_decay=1.1)


@pytest.mark.parametrize("name", DISCOUNTS)
def test_draws_continue_one_another_across_trials(name):
    task = build(name)
    state = start = task.init(jax.random.key(5))
    parts = []
    for length in (97, 1, 97):
        state, drawn = draw(task, state, length)
        parts.append(drawn)
    end, whole = draw(task, start, 195)
    jax.tree.map(lambda w, *rows: np.testing.assert_array_equal(w, np.concatenate(rows)), whole, *parts)
    assert all(jnp.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (end, state)), strict=True))


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"isi must be two integers, \[least, most\], got 7"):
        tasks.trace_conditioning(isi=7)
    with pytest.raises(ValueError, match=r"iti must be \[least, most\] in this order, got \[9, 8\]"):
        tasks.trace_conditioning(iti=(9, 8))
    with pytest.raises(TypeError, match=r"isi must be two integers, \[least, most\], got \[7\]"):
        tasks.trace_conditioning(isi=(7,))
    with pytest.raises(ValueError, match="isi must be at least 1, got 0"):
        tasks.trace_conditioning(isi=(0, 8))
    with pytest.raises(ValueError, match="cs_length must be at most the least isi, 7, got 8"):
        tasks.trace_conditioning(cs_length=8)
    with pytest.raises(ValueError, match="us_length must be at most the least iti, 80, got 81"):
        tasks.trace_conditioning(us_length=81)
    with pytest.raises(ValueError, match="distractors must be at least 0, got -1"):
        tasks.trace_conditioning(distractors=-1)
    with pytest.raises(ValueError, match=r"discount must be in \[0, 1\), got 1"):
        tasks.trace_patterning(discount=1)
    with pytest.raises(ValueError, match="valid must be at most the 20 patterns with 3 of 6, got 21"):
        tasks.trace_patterning(valid=21)
    with pytest.raises(ValueError, match="active must be at most bits, got 7 and 6"):
        tasks.trace_patterning(active=7)
