"""Mimic: predict what another recurrent network says, which sees the same noise.

    a_t = (1-α) a_{t-1} + α tanh(W_rec a_{t-1} + W_in x_t + b)          y_t = W_out a_t + b_out

The network to be mimicked, the teacher, is as large as its input and its output. W_rec is orthogonal,
W_in and W_out are N(0, 1/size), b and b_out are N(0, 0.1²), a_0 = 0; the bits of x are fair coins.

Reference: Marschall, Cho & Savin, arXiv:1907.02649.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from online_grads.arguments import float_dtype, positive_int
from online_grads.cells import vanilla_rnn
from online_grads.losses import squared_error
from online_grads.readouts import linear
from online_grads.tasks.types import Task
from online_grads.types import Array, PyTree

BIAS = 0.1  # standard deviation of the teacher's biases


class MimicState(NamedTuple):
    """Where a mimic stream stands; each stream has a teacher of its own."""

    cell: PyTree  # the teacher's W_rec, W_in and bias
    readout: PyTree  # its W and bias
    hidden: Array  # [size] a_t
    key: Array  # typed PRNG key
    step: Array  # [] int32, steps drawn so far


def mimic(*, size: int = 32, leak: float = 1.0, repeat: int = 1, dtype=None) -> Task:
    """Mimic: predict what another recurrent network says, which sees the same noise.

        a_t = (1-α) a_{t-1} + α tanh(W_rec a_{t-1} + W_in x_t + b)          y_t = W_out a_t + b_out

    The key of a stream draws its teacher as well as its inputs. The loss is ½ the sum of the squared
    errors, so that its gradient is the error; what is shown is ½ their mean. There, predicting the mean
    of every label scores 0.099 by default and 0.043 with leak=0.5, repeat=2, on average over teachers.

    Args:
        size: of the teacher's input, hidden state and output.
        leak: the teacher's α in (0, 1].
        repeat: how many steps each input is shown; the teacher moves at every step.
        dtype: of the stream and the teacher, by default JAX's float.

    Returns:
        A `Task` with x [size], zeros and ones, and y [size].

    Raises:
        TypeError, ValueError: size or repeat is not a positive integer, the leak is not a number in
            (0, 1], the dtype is not a floating one.

    >>> task = mimic(size=3, leak=0.5, repeat=2)
    >>> state, (xs, ys) = task.draw(task.init(jax.random.key(0)), 6)
    >>> bool((xs[::2] == xs[1::2]).all()), ys.shape
    (True, (6, 3))
    """
    size, repeat, dtype = positive_int("size", size), positive_int("repeat", repeat), float_dtype(dtype)
    cell, readout = vanilla_rnn(size, size, leak=leak, dtype=dtype), linear(size, size, dtype=dtype)

    def init(key):
        for_cell, for_readout, for_biases, for_inputs = jax.random.split(key, 4)
        recurrent, hidden = cell.init(for_cell)
        bias, bias_out = BIAS * jax.random.normal(for_biases, (2, size), dtype)
        output = readout.init(for_readout)
        return MimicState(
            cell=recurrent | {"bias": bias},
            readout=output | {"bias": bias_out},
            hidden=hidden,
            key=for_inputs,
            step=jnp.zeros((), jnp.int32),
        )

    def draw(state, length):
        def bits(index):
            return jax.random.bernoulli(jax.random.fold_in(state.key, index), shape=(size,))

        def step(hidden, x):
            hidden = cell.step(state.cell, hidden, x)
            return hidden, readout.apply(state.readout, cell.output(hidden))

        indices = (state.step + jnp.arange(length, dtype=jnp.int32)) // repeat
        xs = jax.vmap(bits)(indices).astype(dtype)
        hidden, ys = jax.lax.scan(step, state.hidden, xs)
        return state._replace(hidden=hidden, step=state.step + length), (xs, ys)

    example = jax.ShapeDtypeStruct((size,), dtype)
    return Task(
        init=init,
        draw=draw,
        example=(example, example),
        loss=squared_error,
        outputs=size,
        unit="½ mean squared error",
        scale=1 / size,
        references={"the teacher itself": 0.0},
    )
