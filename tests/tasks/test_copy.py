"""Copy, against a replay of what the stream shows, and its curriculum."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import tasks


def draw(task, state, length):
    state, drawn = jax.jit(task.draw, static_argnums=1)(state, length)
    return state, jax.tree.map(np.asarray, drawn)


def joined(*parts):
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


def replay(drawn):
    """The lengths of the strings, having checked that every whole episode reads and recalls the same bits."""
    (xs, resets), ys = drawn
    lengths = []
    begun = np.flatnonzero(resets)
    for first, last in itertools.pairwise(begun):
        x, n = xs[first:last], (last - first) // 2
        assert len(x) == 2 * n + 1
        np.testing.assert_array_equal(x[:n, 0] + x[:n, 1], np.ones(n))
        np.testing.assert_array_equal(x[n:], [[0, 0, 1], *[[0, 0, 0]] * n])
        np.testing.assert_array_equal(ys.counts[first:last], [0] * (n + 1) + [1] * n)
        np.testing.assert_array_equal(x[:n, 1], ys.bit[first + n + 1 : last])
        lengths.append(n)
    return lengths


def losses_of(bits, ys, updates=10):
    """Mean losses in nats of the segments of a span in which every recalled bit costs `bits`."""
    return jnp.asarray(ys.counts.reshape(updates, -1).mean(1) * bits * np.log(2))


@pytest.mark.parametrize(
    ("start", "spread", "expected"), [(1, 5, {1}), (4, 5, {1, 2, 3, 4}), (9, 5, {*range(4, 10)}), (3, 0, {3})]
)
def test_the_bits_read_are_recalled_and_lengths_are_uniform(start, spread, expected):
    task = tasks.copy(start=start, spread=spread)
    _, drawn = draw(task, task.init(jax.random.key(0)), 8000)
    lengths = replay(drawn)
    assert drawn[0][1][0]
    assert set(lengths) == expected
    shares = [lengths.count(n) / len(lengths) for n in expected]
    np.testing.assert_allclose(shares, 1 / len(expected), atol=4 * 0.5 / len(lengths) ** 0.5)
    asked = drawn[1].bit[drawn[1].counts == 1]
    np.testing.assert_allclose(asked.mean(), 0.5, atol=2 / len(asked) ** 0.5)
    # guessing costs a bit for each that is asked
    assert list(task.references) == [f"guessing at T = {start}"]
    np.testing.assert_allclose(list(task.references.values()), drawn[1].counts.mean(), atol=0.01)


def test_strings_differ():
    task = tasks.copy(start=30, spread=0)
    (xs, _), _ = draw(task, task.init(jax.random.key(0)), 61 * 50)[1]
    assert len({xs[61 * i : 61 * i + 30, 1].tobytes() for i in range(50)}) == 50


def test_only_recalled_bits_cost():
    loss = tasks.copy().loss
    logits = jnp.array([0.3, -1.0])
    say = lambda bit, counts: float(loss(logits, tasks.Recall(jnp.array(bit, jnp.int32), jnp.array(counts))))
    np.testing.assert_allclose([say(0, 1.0), say(1, 1.0)], -np.log(np.exp(logits) / np.exp(logits).sum()))
    assert say(0, 0.0) == say(1, 0.0) == 0


@pytest.mark.parametrize("bits", [0.1, 0.2])
def test_the_level_rises_when_and_only_when_little_is_lost(bits):
    task = tasks.copy(longest=3)
    state, levels = task.init(jax.random.key(0)), []
    adapt = jax.jit(task.adapt)
    for _ in range(30):
        state, (_, ys) = draw(task, state, 300)
        state = adapt(state, ys, losses_of(bits, ys))
        levels.append(int(task.level(state)))
    if bits > 0.15:
        assert set(levels) == {1}
        np.testing.assert_allclose(state.bits, bits, atol=1e-3)
    else:
        # 0.1 + 0.9 · 0.99^m < 0.15 takes m = 288 recalled bits of a level: three spans of 100 and more
        assert levels[:4] == [1, 1, 2, 2]
        assert levels[-1] == 3
        assert set(np.diff(levels)) == {0, 1}


def test_the_running_mean_is_that_of_single_bits_and_begins_anew():
    task = tasks.copy(start=2, smoothing=0.9, threshold=0.3)
    state = task.init(jax.random.key(0))
    assert state.bits == 1
    state, (_, ys) = draw(task, state, 20)
    counts = ys.counts.sum()
    after = task.adapt(state, ys, losses_of(0.6, ys))
    np.testing.assert_allclose(after.bits, 0.9**counts * 1 + (1 - 0.9**counts) * 0.6, rtol=1e-12)
    # the same by segments of another length
    np.testing.assert_allclose(task.adapt(state, ys, losses_of(0.6, ys, 4)).bits, after.bits, rtol=1e-12)
    risen = task.adapt(after._replace(bits=jnp.array(0.31)), ys, losses_of(0.0, ys))
    assert (int(risen.level), float(risen.bits)) == (3, 1.0)
    # nothing asked, nothing learned about it
    nothing = jax.tree.map(jnp.zeros_like, ys)
    assert task.adapt(after, nothing, losses_of(0.0, nothing)).bits == after.bits


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_seed_that_diverged_stays_where_it_is(bad):
    task = tasks.copy()
    state, (_, ys) = draw(task, task.init(jax.random.key(0)), 300)
    before = state._replace(bits=jnp.array(0.2))
    after = task.adapt(before, ys, losses_of(0.0, ys).at[3].set(bad))
    assert (int(after.level), float(after.bits)) == (1, 0.2)
    # while without it
    assert task.adapt(before, ys, losses_of(0.0, ys)).level == 2


def test_draws_continue_one_another_and_an_episode_keeps_its_string():
    task = tasks.copy(start=6, spread=2)
    begin = task.init(jax.random.key(2))
    _, whole = draw(task, begin, 300)
    state, first = draw(task, begin, 43)
    assert state.position.offset > 0
    # a higher level: what has begun goes on as before, what follows grows
    risen = state._replace(level=jnp.array(20, jnp.int32))
    end, second = draw(task, risen, 257)
    rest = np.flatnonzero(whole[0][1][43:])[0]
    jax.tree.map(
        lambda w, a, b: np.testing.assert_array_equal(w[: 43 + rest], np.concatenate([a, b[:rest]])),
        whole, first, second,
    )  # fmt: skip
    seen = replay(joined(first, second))
    old = int(first[0][1].sum())
    assert max(seen[:old]) <= 6
    assert min(seen[old:]) >= 18
    # two draws after the rise are one draw, also where the first ends in the episode begun before it
    for split in (1, rest, 60):
        middle, left = draw(task, risen, int(split))
        last, right = draw(task, middle, 257 - int(split))
        jax.tree.map(np.testing.assert_array_equal, joined(left, right), second)
        assert all(jnp.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (last, end)), strict=True))
    # without what the state keeps, the episode would change under way
    forgetful = joined(first, draw(task, risen._replace(begun=risen.level), 257)[1])
    with pytest.raises(AssertionError):
        replay(forgetful)


def test_a_new_level_holds_from_the_next_episode_when_a_span_ends_with_one():
    task = tasks.copy(start=4, spread=0)
    state, _ = draw(task, task.init(jax.random.key(0)), 9)
    assert (int(state.position.episode), int(state.position.offset)) == (1, 0)
    state, drawn = draw(task, state._replace(level=jnp.array(7, jnp.int32)), 16)
    assert replay(drawn) == [7]
    assert int(state.begun) == 7


def test_bad_arguments():
    with pytest.raises(ValueError, match="longest must be at least start, 5, got 4"):
        tasks.copy(start=5, longest=4)
    with pytest.raises(ValueError, match="start must be at least 1, got 0"):
        tasks.copy(start=0)
    with pytest.raises(ValueError, match="spread must be at least 0, got -1"):
        tasks.copy(spread=-1)
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\), got 0"):
        tasks.copy(threshold=0)
    with pytest.raises(ValueError, match=r"smoothing must be in \(0, 1\), got 1"):
        tasks.copy(smoothing=1)
