"""Tasks: laws that every stream obeys, then each task's own mathematics."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import cells, model, readouts, tasks

SHORT = "the cat sat on the mat; the dog did not.\n"
# name -> the arguments that a task cannot do without, say {"path": a file in tests/data}
ARGUMENTS: dict[str, dict] = {
    "series": {"path": Path(__file__).parents[2] / "configs/data/sunspots.csv", "column": "sunspots"}
}
# the stream is the same for every key
WITHOUT_CHANCE = {"influence_balancing", "series"}
# the labels come from a recurrent network, which cannot be run but step by step
STEP_BY_STEP = {"mimic"}
# of most streams: a program is compiled for each length
SHORT_STREAM, STREAM = 17, 102


@pytest.fixture
def sentence(tmp_path):
    path = tmp_path / "sentence.txt"
    path.write_text(SHORT)
    return path


@functools.cache
def build(name, dtype=None):
    return tasks.TASKS[name](**ARGUMENTS.get(name, {}), dtype=dtype)


def draw(task, state, length):
    return jax.jit(task.draw, static_argnums=1)(state, length)


def stream(task, length, seed=0):
    """The first steps of a stream, in NumPy."""
    return jax.tree.map(np.asarray, draw(task, task.init(jax.random.key(seed)), length)[1])


def one_step(task):
    """(x, y) of one step as a stream has them, with the reset flag if there is one."""
    x, y = task.example
    return ((x, jax.ShapeDtypeStruct((), jnp.bool_)) if task.resets else x), y


def assert_same(left, right):
    # keys included
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(*map(plain, (a, b))), left, right)


def plain(leaf):
    return jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf


# ---- laws of every task


@pytest.mark.parametrize("name", tasks.TASKS)
@pytest.mark.parametrize("dtype", [None, jnp.float32])
def test_a_stream_is_like_its_example(name, dtype):
    task = build(name, dtype)
    example, drawn = one_step(task), stream(task, SHORT_STREAM)
    assert jax.tree.map(lambda leaf: ((SHORT_STREAM, *leaf.shape), leaf.dtype), example) == jax.tree.map(
        lambda rows: (rows.shape, rows.dtype), drawn
    )
    floats = {leaf.dtype for leaf in jax.tree.leaves(example) if jnp.issubdtype(leaf.dtype, jnp.inexact)}
    assert floats == {jnp.dtype(dtype or jnp.float64)}
    assert all(np.isfinite(value) for value in task.references.values())


@pytest.mark.parametrize("name", tasks.TASKS)
def test_draws_continue_one_another(name):
    task = build(name)
    state = task.init(jax.random.key(3))
    whole_state, whole = draw(task, state, STREAM)
    parts = []
    for _ in range(STREAM // SHORT_STREAM):
        state, drawn = draw(task, state, SHORT_STREAM)
        parts.append(drawn)
    assert_same(whole, jax.tree.map(lambda *rows: np.concatenate(rows), *parts))
    assert_same(whole_state, state)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_streams_of_many_seeds_at_once(name):
    task = build(name)
    keys = jax.random.split(jax.random.key(0), 4)
    _, drawn = jax.jit(jax.vmap(lambda key: task.draw(task.init(key), STREAM)))(keys)
    rows = [jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i]), drawn) for i in range(4)]
    distinct = {b"".join(leaf.tobytes() for leaf in jax.tree.leaves(row)) for row in rows}
    assert len(distinct) == (1 if name in WITHOUT_CHANCE else 4)
    # products with a batch of vectors may round differently
    alone = draw(task, task.init(keys[2]), STREAM)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12), alone, rows[2])


@pytest.mark.parametrize("name", tasks.TASKS)
def test_a_draw_has_no_loop_over_steps(name):
    task = build(name)
    state = task.init(jax.random.key(0))
    jaxpr = str(jax.make_jaxpr(lambda state: task.draw(state, 20))(state))
    loops = {"scan[", "while["} & set(jaxpr.split())
    assert loops == ({"scan["} if name in STEP_BY_STEP else set())


@pytest.mark.parametrize("name", [name for name in tasks.TASKS if build(name).resets])
def test_a_stream_begins_with_a_reset(name):
    (_, reset), _ = stream(build(name), SHORT_STREAM)
    assert reset[0]
    assert not reset.all()


@pytest.mark.parametrize("name", [name for name in tasks.TASKS if build(name).adapt is not None])
def test_a_curriculum_keeps_the_kind_of_its_state(name):
    task = build(name)
    state = task.init(jax.random.key(0))
    ys, losses = draw(task, state, SHORT_STREAM)[1][1], jnp.zeros(4)
    kind = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert kind(jax.eval_shape(task.adapt, state, ys, losses)) == kind(state)
    assert jax.eval_shape(task.level, state).shape == ()


@pytest.mark.parametrize("name", [name for name in tasks.TASKS if build(name).model is None])
def test_any_cell_can_learn_it(name):
    task = build(name)
    cell = cells.gru(task.example[0].shape[0], 4)
    readout = (task.readout or readouts.linear)(4, task.outputs, dtype=None)
    if task.build is None:
        learned = model.from_cell(cell, readout, task.loss, example=task.example)
    else:
        learned = task.build(cell, readout)
    if task.resets:
        learned = model.with_resets(learned, jnp.zeros(4))

    def step(key):
        params, hidden = learned.init(key)
        x, y = jax.tree.map(lambda rows: rows[0], task.draw(task.init(key), 1)[1])
        loss, outputs = learned.loss(params, learned.transition(params, hidden, x), y)
        return loss, outputs, loss if task.score is None else task.score(outputs, y)

    loss, outputs, shown = jax.eval_shape(step, jax.random.key(0))
    assert loss.shape == shown.shape == ()
    if task.build is None:
        assert outputs.shape == (task.outputs,)


# ---- influence balancing


def trajectory(task, theta, steps=2000):
    """s[0] at every step."""

    def step(s, _):
        s = task.model.transition({"theta": theta}, s, jnp.zeros(0))
        return s, s[0]

    _, start = task.model.init(jax.random.key(0))
    return np.asarray(jax.jit(lambda s: jax.lax.scan(step, s, None, steps)[1])(start))


def test_influence_balancing_has_its_optimum_at_minus_one_sixth():
    task = tasks.influence_balancing()
    params, hidden = task.model.init(jax.random.key(0))
    assert params["theta"] == 0.5
    np.testing.assert_array_equal(hidden, np.ones(23))
    np.testing.assert_allclose(trajectory(task, -1 / 6)[-1], 1, atol=1e-10)
    loss, shown = task.model.loss(params, trajectory(task, 0.5)[-1:], np.ones(()))
    np.testing.assert_allclose((loss, shown), (task.references["θ stays at 0.5"], -3), rtol=1e-10)


def test_influence_balancing_turns_the_sign_after_41_steps():
    task = tasks.influence_balancing()
    influence = trajectory(task, 1.0, 200) - trajectory(task, 0.0, 200)
    np.testing.assert_allclose(influence[[0, 9, 18, 49]], [1, 10, 16.476, -4.75], atol=5e-3)
    assert influence[39] > 0 > influence[40]
    # the mean over a window with a loss at every step, which truncated backpropagation follows
    assert influence[:100].mean() > 0 > influence.mean()


def test_influence_balancing_of_another_size():
    task = tasks.influence_balancing(positive=4, units=5)
    np.testing.assert_allclose(trajectory(task, 1 / 6)[-1], 1, atol=1e-10)


# ---- add


@pytest.mark.parametrize(("t1", "t2", "repeat"), [(5, 9, 1), (4, 2, 3)])
def test_add_follows_its_equation(t1, t2, repeat):
    task = tasks.add(t1=t1, t2=t2, repeat=repeat)
    xs, ys = stream(task, 120 * repeat)
    for rows in (xs, ys):
        np.testing.assert_allclose(rows.sum(1), 1)
        np.testing.assert_array_equal(rows[::repeat].repeat(repeat, 0), rows)
    bits, y = xs[::repeat, 0], ys[::repeat, 0]
    i = np.arange(9, 120)
    np.testing.assert_array_equal(y[i], 0.5 + 0.5 * bits[i - t1] - 0.25 * bits[i - t2])
    # the first labels speak of bits before the first step
    assert set(y[:9]) <= {0.25, 0.5, 0.75, 1.0}
    assert len(set(y[:9])) > 1


def test_add_bits_are_fair_and_references_are_what_the_best_predictions_score():
    task = tasks.add()
    bits, y = (rows[:, 0] for rows in stream(task, 40_000))
    np.testing.assert_allclose(bits.mean(), 0.5, atol=4 * 0.5 / 200)
    np.testing.assert_allclose(np.mean(bits[1:] * bits[:-1]), 0.25, atol=0.02)
    i, near, far = np.arange(9, len(y)), bits[4:-5].astype(int), bits[:-9].astype(int)
    scores = []
    for context in (0 * near, far, near, 2 * near + far):
        best = np.array([y[i][context == c].mean() for c in range(context.max() + 1)])[context]
        scores.append(-np.mean(y[i] * np.log(best) + (1 - y[i]) * np.log(np.maximum(1 - best, 1e-300))))
    np.testing.assert_allclose(scores, list(task.references.values()), atol=0.005)
    np.testing.assert_allclose(scores, [0.6616, 0.6277, 0.5192, 0.4545], atol=0.005)


# ---- text


def test_text_spells_the_file_in_a_circle(sentence):
    task = tasks.text(sentence, random_start=False)
    length = 2 * len(SHORT) + 3
    xs, ys = stream(task, length, seed=7)
    letters = np.array(sorted(set(SHORT)))
    np.testing.assert_array_equal(xs.sum(1), np.ones(length))
    assert "".join(letters[np.argmax(xs, 1)]) == (SHORT * 3)[:length]
    assert "".join(letters[ys]) == (SHORT * 3)[1 : length + 1]
    assert task.outputs == len(letters) == task.example[0].shape[0]


def test_text_begins_where_the_key_says(sentence):
    task = tasks.text(sentence)
    positions = jax.jit(jax.vmap(task.init))(jax.random.split(jax.random.key(0), 1000))
    assert set(positions.tolist()) == set(range(len(SHORT)))


def test_text_references_are_those_of_counting(sentence):
    task = tasks.text(sentence)
    pairs = list(zip(SHORT, SHORT[1:] + SHORT[0], strict=True))
    n = len(SHORT)
    single = -sum(np.log2(SHORT.count(a) / n) for a in SHORT) / n
    given = -sum(np.log2(pairs.count(pair) / SHORT.count(pair[0])) for pair in pairs) / n
    assert list(task.references) == ["entropy of a character", "given the previous one"]
    np.testing.assert_allclose(list(task.references.values()), [single, given], rtol=1e-12)
    # shown loss = scale × nats: the best prediction without memory scores the first reference
    frequencies = np.array([SHORT.count(a) / n for a in sorted(set(SHORT))])
    nats = jax.jit(jax.vmap(task.loss, (None, 0)))(np.log(frequencies), stream(task, n)[1]).mean()
    np.testing.assert_allclose(task.scale * nats, single, rtol=1e-12)


def test_the_default_text_is_english():
    task = tasks.text(characters=200_000)
    # CPython's documentation changes a little from version to version: 4.678 and 3.579 with 3.11
    np.testing.assert_allclose(list(task.references.values()), [4.68, 3.58], atol=0.05)
    assert task.references != tasks.text().references


def test_text_reads_unicode_and_keeps_line_ends(tmp_path):
    path = tmp_path / "unicode.txt"
    path.write_bytes("\ufeffπ𝛑\r\nß".encode())
    _, ys = stream(tasks.text(path, random_start=False), 5)
    assert "".join(np.array(sorted("π𝛑\r\nß"))[ys]) == "𝛑\r\nßπ"


def test_text_with_a_large_alphabet(tmp_path):
    path = tmp_path / "alphabet.txt"
    path.write_text(alphabet := "".join(map(chr, range(0x4E00, 0x4E00 + 300))), encoding="utf-8")
    xs, ys = stream(task := tasks.text(path, random_start=False), 300)
    np.testing.assert_array_equal(np.argmax(xs, 1), np.arange(300))
    assert ys[254:258].tolist() == [255, 256, 257, 258]
    assert task.outputs == len(alphabet)


def test_text_in_the_vocabulary_of_another(tmp_path, sentence):
    path = tmp_path / "dot.txt"
    path.write_text("dot\nnot\n")
    task = tasks.text(path, vocabulary=sentence, random_start=False)
    letters = np.array(sorted(set(SHORT)))
    xs, ys = stream(task, 8)
    assert "".join(letters[np.argmax(xs, 1)]) == "dot\nnot\n"
    assert "".join(letters[ys]) == "ot\nnot\nd"
    assert task.outputs == len(letters) == task.example[0].shape[0]
    # the references count in the text, not in the vocabulary
    assert task.references == tasks.text(path).references
    # one character is enough if the model knows others
    path.write_text("ttt")
    assert tasks.text(path, vocabulary=sentence).references["entropy of a character"] == 0


def test_text_with_a_character_that_the_vocabulary_lacks(tmp_path, sentence):
    path = tmp_path / "zebra.txt"
    path.write_text("the cat\n\nthe zebra!\n")
    with pytest.raises(
        ValueError,
        match=r"zebra.txt has 'z' in line 3, column 5, which is not among the 16 characters of .*tence.txt",
    ):
        tasks.text(path, vocabulary=sentence)
    path.write_text("!")
    with pytest.raises(ValueError, match="has '!' in line 1, column 1, which"):
        tasks.text(path, vocabulary=sentence)
    # what is not read may be anything
    path.write_text("the cat\nthe zebra!\n")
    assert tasks.text(path, vocabulary=sentence, characters=12).outputs == 16
    path.write_text("")
    with pytest.raises(ValueError, match=r"zebra.txt is empty"):
        tasks.text(sentence, vocabulary=path)
    path.write_text("z")
    with pytest.raises(ValueError, match=r"zebra.txt has one distinct character only, 'z'"):
        tasks.text(sentence, vocabulary=path)
    with pytest.raises(FileNotFoundError, match=r"^vocabulary: no text file at .*absent"):
        tasks.text(sentence, vocabulary=tmp_path / "absent")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"aaaa", "one distinct character only, 'a'"),
        (b"abc\xff", "is not UTF-8: invalid start byte at byte 3"),
    ],
)
def test_text_that_cannot_be_learned(tmp_path, content, message):
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"bad.txt.* {message}"):
        tasks.text(path)


def test_bad_arguments(tmp_path, sentence):
    with pytest.raises(FileNotFoundError, match=r"^path: no text file at .*absent.txt"):
        tasks.text(tmp_path / "absent.txt")
    with pytest.raises(FileNotFoundError, match=r"^path: no text file at"):
        tasks.text(tmp_path)
    with pytest.raises(ValueError, match="has 41 characters, fewer than the 42 asked for"):
        tasks.text(sentence, characters=42)
    with pytest.raises(TypeError, match="random_start must be True or False, got 1"):
        tasks.text(sentence, random_start=1)
    with pytest.raises(ValueError, match="t1 and t2 must differ, got 3 for both"):
        tasks.add(t1=3, t2=3)
    with pytest.raises(ValueError, match="repeat must be at least 1, got 0"):
        tasks.add(repeat=0)
    with pytest.raises(ValueError, match="not half of it, got 5 of 10"):
        tasks.influence_balancing(positive=5, units=10)
    with pytest.raises(TypeError, match="dtype must be a real floating dtype, got complex128"):
        tasks.influence_balancing(dtype=complex)
