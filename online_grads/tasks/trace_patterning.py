"""Trace patterning: which patterns announce what comes long after them?

    x_t = [US, CS, distractors]          G_t = Σ_{j≥0} γ^j US_{t+1+j}

The CS is a pattern of bits that is shown for one step. No single bit tells whether a US follows: the
learner needs the pattern as a whole, and a memory of it. `online_grads.tasks.trials` draws the timing.

Reference: Javed et al. (2023), Scalable real-time recurrent learning using columnar-constructive
networks, arXiv:2302.05326.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import in_order, positive_int
from online_grads.tasks.trials import Cue, conditioning
from online_grads.tasks.types import Task


def trace_patterning(
    *,
    isi: tuple[int, int] = (24, 36),
    iti: tuple[int, int] = (80, 120),
    bits: int = 6,
    active: int = 3,
    valid: int = 10,
    distractors: int = 5,
    discount: float = 0.9,
    trace_decay: float | None = None,
    dtype=None,
) -> Task:
    """Trace patterning: predict the discounted sum of a US that some patterns announce.

        x_t = [US, CS, distractors]          G_t = Σ_{j≥0} γ^j US_{t+1+j}

    Every trial shows one of the patterns with `active` ones among `bits`, all equally likely. `valid` of
    them, which the stream's key chooses once and for all, are followed by the US, isi steps later. The
    next pattern comes iti steps after the US, or after where it would have been; both times are uniform
    over their ranges. All events last one step. Distractor d is on at a step with probability 1/(10 d).
    The error shown is (v_t - G_t)²; the references are exact.

    Args:
        isi: least and most steps from CS to US.
        iti: least and most steps from US to the next CS.
        bits: size of the CS.
        active: ones in a pattern.
        valid: patterns that a US follows.
        distractors: how many there are, possibly 0.
        discount: γ in [0, 1).
        trace_decay: λ in [0, 1] of TD(λ); None is semi-gradient TD(0) as a loss.
        dtype: of the stream, by default JAX's float.

    Returns:
        A `Task` with x [1 + bits + distractors] and y a `TdTarget`, learned through `td_model`, or with a
        trace_decay through `value_model` and `eligibility_traces`.

    Raises:
        TypeError, ValueError: a size is not a positive integer, a range not two of them in order, more
            bits are active than there are, there are not so many patterns, the discount is outside
            [0, 1), the trace_decay outside [0, 1], the dtype not a floating one.

    >>> task = trace_patterning()
    >>> task.example[0].shape
    (12,)
    >>> _, (xs, ys) = task.draw(task.init(jax.random.key(0)), 50)
    >>> int(xs[0, 1:7].sum())
    3

    Reference: Javed et al. (2023), arXiv:2302.05326.
    """
    positive_int("bits", bits), positive_int("active", active), positive_int("valid", valid)
    in_order(active=active, bits=bits)
    possible = math.comb(bits, active)
    if valid > possible:
        raise ValueError(
            f"valid must be at most the {possible} patterns with {active} of {bits}, got {valid}"
        )
    ones = np.array(list(itertools.combinations(range(bits), active)))
    patterns = (ones[:, :, None] == np.arange(bits)).any(1)

    def cue(stream, trial):
        followed = jax.random.permutation(stream, possible) < valid
        number = jax.random.randint(trial, (), 0, possible, jnp.int32)
        return Cue(jnp.asarray(patterns)[number], followed[number])

    return conditioning(
        cue,
        bits=bits,
        us_probability=valid / possible,
        isi=isi,
        iti=iti,
        cs_length=1,
        us_length=1,
        distractors=distractors,
        distractor_length=1,
        discount=discount,
        trace_decay=trace_decay,
        dtype=dtype,
    )
