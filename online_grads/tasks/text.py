"""A text, character by character: predict the next one.

    x_t = onehot(u_t) [V]          y_t = u_{t+1}          V = the number of distinct characters in the text

The references are what can be had from counting in this very text, in bits per character: the
entropy H(u_t) of a character and the conditional entropy H(u_{t+1} | u_t) given the previous one.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import boolean, counted, float_dtype, positive_int
from online_grads.losses import softmax_cross_entropy
from online_grads.tasks.types import Task


def text(
    path: str | os.PathLike | None = None,
    *,
    characters: int | None = None,
    random_start: bool = True,
    vocabulary: str | os.PathLike | None = None,
    dtype=None,
) -> Task:
    """A text, character by character: predict the next one.

        x_t = onehot(u_t)          y_t = u_{t+1}

    The text is read in a circle: its last character is followed by its first, the one pair that no
    one wrote. Without a path it is the English documentation that ships inside every CPython,
    `pydoc_data.topics`, about 465,000 characters.

    Args:
        path: a UTF-8 file.
        characters: read this many characters from the beginning and ignore the rest; by default all.
        random_start: a stream begins anywhere in the circle, as its key says, so that seeds and
            parallel streams differ; False begins every stream at the first character.
        vocabulary: a UTF-8 file whose characters, all of them, have a place in x, so that a model that
            learned from one text can read another; by default those of the text that is read.
        dtype: of x, by default JAX's float.

    Returns:
        A `Task` with x [V], one-hot, and y [] int32, whose loss is shown in bits per character.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a file is not UTF-8 or empty, the text is shorter than `characters`, the vocabulary
            has one character only or lacks one of the text; `characters` is below 1.
        TypeError: an argument is of the wrong type.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".txt") as file:
    ...     _ = file.write("aab".encode())
    ...     file.flush()
    ...     task = text(file.name, random_start=False)
    >>> _, (xs, ys) = task.draw(task.init(jax.random.key(0)), 4)
    >>> xs[:, 1].astype(int).tolist(), ys.tolist()
    ([0, 0, 1, 0], [0, 1, 0, 0])
    >>> {name: round(bits, 3) for name, bits in task.references.items()}
    {'entropy of a character': 0.918, 'given the previous one': 0.667}
    """
    boolean("random_start", random_start)
    dtype = float_dtype(dtype)
    source, content = _read("path", path)
    if characters is not None:
        if positive_int("characters", characters) > len(content):
            has = counted(len(content), "character")
            raise ValueError(f"{source} has {has}, fewer than the {characters} asked for")
        content = content[:characters]
    alphabet, known = (source, content) if vocabulary is None else _read("vocabulary", vocabulary)
    points, letters = _points(content), np.unique(_points(known))
    size, total = len(letters), len(points)
    if size < 2:
        raise ValueError(f"{alphabet} has one distinct character only, {known[0]!r}: nothing to predict")
    if (unknown := np.flatnonzero(~np.isin(points, letters))).size:
        where = int(unknown[0])
        line, column = content.count("\n", 0, where) + 1, where - content.rfind("\n", 0, where)
        raise ValueError(
            f"{source} has {content[where]!r} in line {line}, column {column}, "
            f"which is not among the {size} characters of {alphabet}"
        )
    codes = np.searchsorted(letters, points)
    # kept in as few bytes as a code needs: the text becomes a constant of the compiled program
    compact = codes.astype(np.min_scalar_type(size - 1))

    def init(key):
        return jax.random.randint(key, (), 0, total if random_start else 1, jnp.int32)

    def read(position, length):
        where = (position + jnp.arange(length + 1, dtype=jnp.int32)) % total
        drawn = jnp.asarray(compact)[where].astype(jnp.int32)
        return where[-1], drawn[:-1], drawn[1:]

    references = _references(codes.astype(np.int64), size)
    return next_character(init, read, size=size, references=references, dtype=dtype)


def next_character(init: Callable, codes: Callable, *, size: int, references: dict, dtype) -> Task:
    """The task of predicting the next character of a stream, shown in bits.

        x_t = onehot(u_t) [size]          y_t = u_{t+1}

    Args:
        init: key -> stream state.
        codes: (state, length) -> (state, u_t [length] int32, u_{t+1} [length] int32).
        size: of the vocabulary.
        references: name -> bits per character.
        dtype: of x.

    Returns:
        A `Task`.

    >>> def alternating(step, length):
    ...     steps = step + jnp.arange(length, dtype=jnp.int32)
    ...     return step + length, steps % 2, (steps + 1) % 2
    >>> task = next_character(lambda key: 0, alternating, size=2, references={"known": 0.0}, dtype=float)
    >>> task.draw(0, 3)[1][1].tolist()
    [1, 0, 1]
    """

    def draw(state, length):
        state, here, following = codes(state, length)
        return state, (jax.nn.one_hot(here, size, dtype=dtype), following)

    return Task(
        init=init,
        draw=draw,
        example=(jax.ShapeDtypeStruct((size,), dtype), jax.ShapeDtypeStruct((), jnp.int32)),
        loss=softmax_cross_entropy,
        outputs=size,
        unit="bits per character",
        scale=1 / math.log(2),
        references=references,
    )


def _points(content):
    """The code points of a text."""
    return np.frombuffer(content.encode("utf-32-le"), np.uint32)


def _read(argument, path):
    """The name and the characters of the text that an argument names."""
    if path is None:
        from pydoc_data.topics import topics

        # the topics end in one newline; a second one keeps an empty line between them
        return "pydoc_data.topics", "\n".join(topics.values())
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{argument}: no text file at {path}")
    try:
        # bytes, so that line ends stay as they are; -sig drops a byte order mark
        content = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    if not content:
        raise ValueError(f"{path} is empty")
    return str(path), content


def _references(codes, size):
    def entropy(values):
        _, counts = np.unique(values, return_counts=True)
        p = counts / counts.sum()
        return float(-(p * np.log2(p)).sum())

    single, pair = entropy(codes), entropy(codes * size + np.roll(codes, -1))
    return {"entropy of a character": single, "given the previous one": pair - single}
