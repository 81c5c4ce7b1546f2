"""aⁿbⁿ: the stream, parsed as text; the references, counted over all lines."""

import itertools
import math
import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import tasks


def draw(task, state, length):
    return jax.jit(task.draw, static_argnums=1)(state, length)


def spell(codes):
    return "".join("\nab"[code] for code in codes)


def spelt(task, length, seed=0):
    """The first characters of a stream, and of the stream one character later."""
    _, (xs, ys) = draw(task, task.init(jax.random.key(seed)), length)
    np.testing.assert_array_equal(np.sort(xs, 1), np.tile([0, 0, 1], (length, 1)))
    return spell(np.argmax(xs, 1)), spell(ys)


def counts(text):
    """How many a and how many b each line has; the last line may be cut."""
    *lines, rest = re.split(r"(?<=b)\n", text)
    assert re.fullmatch(r"a*|a+\nb*", rest)
    pairs = [re.fullmatch(r"(a+)\n(b+)", line).groups() for line in lines]
    return np.array([[len(a), len(b)] for a, b in pairs])


def test_lines_have_as_many_b_as_a_and_every_number_as_often():
    text, following = spelt(tasks.anbn(), 100_000)
    assert following[:-1] == text[1:]
    a, b = counts(text).T
    np.testing.assert_array_equal(a, b)
    found = np.bincount(a, minlength=33)[1:]
    assert len(found) == 32
    expected = len(a) / 32
    # χ² of 31 degrees of freedom: above 70 once in 10,000 times
    assert np.sum((found - expected) ** 2 / expected) < 70
    # one line says nothing about the next
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 4 / math.sqrt(len(a))


def test_the_range_of_k():
    text, _ = spelt(tasks.anbn(shortest=3, longest=5), 1000)
    assert set(counts(text)[:, 0].tolist()) == {3, 4, 5}
    text, _ = spelt(tasks.anbn(shortest=2, longest=2), 15)
    assert text == "aa\nbb\naa\nbb\naa\n"


def test_draws_continue_one_another_wherever_they_are_cut():
    task = tasks.anbn(longest=4)
    whole, following = spelt(task, 55, seed=1)
    state, parts, parts_following = task.init(jax.random.key(1)), "", ""
    for length in (13, 1) * 3 + (13,):
        state, (xs, ys) = draw(task, state, length)
        parts += spell(np.argmax(xs, 1))
        parts_following += spell(ys)
    assert (parts, parts_following) == (whole, following)
    assert spelt(task, 55, seed=2)[0] != whole


@pytest.mark.parametrize(("shortest", "longest"), [(1, 32), (1, 1), (2, 2), (3, 6)])
def test_references_are_those_of_counting_over_all_lines(shortest, longest):
    lines = ["a" * k + "\n" + "b" * k + "\n" for k in range(shortest, longest + 1)]
    characters = sum(map(len, lines))
    text = "".join(lines)
    pairs = Counter(zip(text, text[1:] + "a", strict=True))
    pair_bits = -sum(n * math.log2(n / text.count(pair[0])) for pair, n in pairs.items())
    # what a line's beginning tells about the next character
    beginnings = Counter(prefix for line in lines for prefix in itertools.accumulate(line, initial=""))
    bits = -sum(
        math.log2(beginnings[line[: i + 1]] / beginnings[line[:i]])
        for line in lines
        for i in range(len(line))
    )
    assert tasks.anbn(shortest=shortest, longest=longest).references == pytest.approx(
        {"given the previous character": pair_bits / characters, "entropy rate": bits / characters}, abs=1e-12
    )


def test_the_shown_loss_of_the_best_prediction_without_memory_is_its_reference():
    task = tasks.anbn()
    length = 50_000
    xs, ys = draw(task, task.init(jax.random.key(5)), length)[1]
    stay = 1 - 1 / 16.5
    logits = jnp.log(jnp.array([[1e-99, 0.5, 0.5], [1 - stay, stay, 1e-99], [1 - stay, 1e-99, stay]]))
    nats = jax.jit(lambda xs, ys: jax.vmap(task.loss)(xs @ logits, ys).mean())(xs, ys)
    reference = task.references["given the previous character"]
    np.testing.assert_allclose(task.scale * nats, reference, atol=0.02)
    assert abs(nats - reference) > 0.05


def test_bad_arguments():
    with pytest.raises(ValueError, match="shortest must be at least 1, got 0"):
        tasks.anbn(shortest=0)
    with pytest.raises(ValueError, match="shortest must be at most longest, got 5 and 4"):
        tasks.anbn(shortest=5, longest=4)
    with pytest.raises(TypeError, match=r"longest must be an integer, got 4.0"):
        tasks.anbn(longest=4.0)
