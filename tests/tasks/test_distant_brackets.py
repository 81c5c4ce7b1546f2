"""Distant brackets: the stream, parsed as text; the references, counted over all lines."""

import itertools
import math
import re
import string
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import tasks


def draw(task, state, length):
    return jax.jit(task.draw, static_argnums=1)(state, length)


def spell(codes, letters):
    return "".join((string.ascii_letters[:letters] + "[]\n")[code] for code in codes)


def spelt(task, length, seed=0):
    """The first characters of a stream, and of the stream one character later."""
    _, (xs, ys) = draw(task, task.init(jax.random.key(seed)), length)
    np.testing.assert_array_equal(xs.sum(1), np.ones(length))
    return tuple(spell(codes, task.outputs - 3) for codes in (np.argmax(xs, 1), ys))


def parse(text):
    """(in the first brackets, in between, in the second brackets) of every whole line."""
    lines = text.split("\n")[:-1]
    return [re.fullmatch(r"\[(\w+)\](\w*)\[(\w+)\]", line).groups() for line in lines]


def chi_square(found):
    found = np.array(found)
    expected = found.sum() / len(found)
    return np.sum((found - expected) ** 2 / expected)


def test_the_second_brackets_repeat_the_first():
    text, following = spelt(tasks.distant_brackets(), 60_000)
    assert following[:-1] == text[1:]
    lines = parse(text)
    assert len(lines) == 5000
    assert all(first == second for first, _, second in lines)
    assert {(len(first), len(between)) for first, between, _ in lines} == {(1, 5)}
    # every letter at every place as often: χ² of 9 degrees of freedom, above 34 once in 10,000 times
    for place in range(6):
        found = Counter((first + between)[place] for first, between, _ in lines)
        assert set(found) == set("abcdefghij")
        assert chi_square(list(found.values())) < 34
    # and pairs of places, also of two lines: 99 degrees of freedom, above 160 once in 10,000 times
    drawn = [first + between for first, between, _ in lines]
    for pairs in (
        Counter(line[:2] for line in drawn),
        Counter(line[0] + line[5] for line in drawn),
        Counter(a[0] + b[0] for a, b in itertools.pairwise(drawn)),
    ):
        assert len(pairs) == 100
        assert chi_square(list(pairs.values())) < 160


def test_every_length_in_between_is_as_frequent():
    lines = parse(spelt(tasks.distant_brackets(copied=3, shortest=0, longest=7, letters=4), 50_000)[0])
    assert all(first == second and len(first) == 3 for first, _, second in lines)
    found = Counter(len(between) for _, between, _ in lines)
    assert set(found) == set(range(8))
    # χ² of 7 degrees of freedom: above 30 once in 10,000 times
    assert chi_square(list(found.values())) < 30
    assert {letter for first, between, _ in lines for letter in first + between} == set("abcd")


def test_draws_continue_one_another_wherever_they_are_cut():
    task = tasks.distant_brackets(copied=2, shortest=0, longest=4, letters=5)
    whole, following = spelt(task, 55, seed=1)
    state, parts, parts_following = task.init(jax.random.key(1)), "", ""
    for length in (13, 1) * 3 + (13,):
        state, (xs, ys) = draw(task, state, length)
        parts += spell(np.argmax(xs, 1), 5)
        parts_following += spell(ys, 5)
    assert (parts, parts_following) == (whole, following)
    assert spelt(task, 55, seed=2)[0] != whole


def rate(lines, context):
    """Bits per character if of a line's beginning this is known; lines are text -> probability."""
    known, joint = Counter(), Counter()
    for line, p in lines.items():
        for i, character in enumerate(line):
            known[context(line[:i])] += p
            joint[context(line[:i]), character] += p
    bits = -sum(p * math.log2(p / known[before]) for (before, _), p in joint.items())
    return bits / sum(p * len(line) for line, p in lines.items())


@pytest.mark.parametrize(
    ("copied", "shortest", "longest", "letters"), [(1, 0, 2, 2), (2, 1, 1, 3), (1, 1, 3, 3), (2, 0, 0, 2)]
)
def test_references_are_those_of_counting_over_all_lines(copied, shortest, longest, letters):
    lines = {}
    for between in range(shortest, longest + 1):
        for drawn in itertools.product(string.ascii_letters[:letters], repeat=copied + between):
            held, rest = "".join(drawn[:copied]), "".join(drawn[copied:])
            lines[f"[{held}]{rest}[{held}]\n"] = 1 / (longest - shortest + 1) / letters ** len(drawn)
    assert sum(lines.values()) == pytest.approx(1)
    task = tasks.distant_brackets(copied=copied, shortest=shortest, longest=longest, letters=letters)
    assert task.references == pytest.approx(
        {
            "no memory of the letters": rate(lines, lambda before: re.sub(r"\w", "?", before)),
            "solved": rate(lines, lambda before: before),
        }
    )
    # forgetting more than the letters costs more
    assert rate(lines, lambda before: before[-1:]) > task.references["no memory of the letters"] + 0.05


def test_the_default_references():
    assert tasks.distant_brackets().references == pytest.approx(
        {"no memory of the letters": 7 * math.log2(10) / 12, "solved": 6 * math.log2(10) / 12}
    )
    assert [round(bits, 3) for bits in tasks.distant_brackets().references.values()] == [1.938, 1.661]


def test_the_shown_loss_is_in_bits():
    task = tasks.distant_brackets(letters=13)
    np.testing.assert_allclose(task.scale * task.loss(jnp.zeros(16), jnp.int32(3)), 4, rtol=1e-12)


def test_bad_arguments():
    with pytest.raises(ValueError, match="copied must be at least 1, got 0"):
        tasks.distant_brackets(copied=0)
    with pytest.raises(ValueError, match="shortest must be at least 0, got -1"):
        tasks.distant_brackets(shortest=-1)
    with pytest.raises(ValueError, match="shortest must be at most longest, got 6 and 5"):
        tasks.distant_brackets(shortest=6)
    with pytest.raises(ValueError, match="letters must be at least 2, got 1"):
        tasks.distant_brackets(letters=1)
