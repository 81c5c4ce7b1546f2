"""Trace conditioning: a cue, a pause of unknown length, then what it announces; bridge the pause.

    x_t = [US, CS, distractors]          G_t = Σ_{j≥0} γ^j US_{t+1+j}

Between the CS and the US nothing is shown that tells how much time has passed, so a prediction of the
return needs a memory. `online_grads.tasks.trials` draws the timing.

Reference: Rafiee et al. (2020), From eye-blinks to state construction, arXiv:2011.04590.
"""

import jax.numpy as jnp

from online_grads.tasks.trials import Cue, conditioning
from online_grads.tasks.types import Task


def trace_conditioning(
    *,
    isi: tuple[int, int] = (7, 13),
    iti: tuple[int, int] = (80, 120),
    cs_length: int = 4,
    us_length: int = 2,
    distractors: int = 10,
    distractor_length: int = 4,
    discount: float | None = None,
    trace_decay: float | None = None,
    dtype=None,
) -> Task:
    """Trace conditioning: predict the discounted sum of a US that a CS announces.

        x_t = [US, CS, distractors]          G_t = Σ_{j≥0} γ^j US_{t+1+j}

    The US begins isi steps after the beginning of the CS, the next CS begins iti steps after the
    beginning of the US; both times are uniform over their ranges. Distractor d fires at a step with
    probability 1/(10 d) and stays on for distractor_length steps from its last firing. The error shown
    is (v_t - G_t)²; the references are exact.

    Args:
        isi: least and most steps from CS to US.
        iti: least and most steps from US to the next CS.
        cs_length: for how many steps the CS is on, at most the least isi.
        us_length: for how many steps the US is on, at most the least iti.
        distractors: how many there are, possibly 0.
        distractor_length: for how many steps one is on.
        discount: γ in [0, 1), by default 1 - 1/mean isi.
        trace_decay: λ in [0, 1] of TD(λ); None is semi-gradient TD(0) as a loss.
        dtype: of the stream, by default JAX's float.

    Returns:
        A `Task` with x [2 + distractors] and y a `TdTarget`, learned through `td_model`, or with a
        trace_decay through `value_model` and `eligibility_traces`.

    Raises:
        TypeError, ValueError: a length is not a positive integer, a range not two of them in order, the
            CS or the US too long, the discount outside [0, 1), the trace_decay outside [0, 1], the dtype
            not a floating one.

    >>> import jax
    >>> task = trace_conditioning(isi=(8, 8), discount=0.5)
    >>> _, (xs, ys) = task.draw(task.init(jax.random.key(0)), 12)
    >>> xs[:, :2].astype(int).T.tolist()
    [[0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]]
    >>> [round(value, 6) for value in ys.value[5:10].tolist()]
    [0.375, 0.75, 1.5, 1.0, 0.0]

    Reference: Rafiee et al. (2020), arXiv:2011.04590.
    """
    return conditioning(
        lambda stream, trial: Cue(jnp.ones(1, bool), jnp.ones((), bool)),
        bits=1,
        us_probability=1.0,
        isi=isi,
        iti=iti,
        cs_length=cs_length,
        us_length=us_length,
        distractors=distractors,
        distractor_length=distractor_length,
        discount=discount,
        trace_decay=trace_decay,
        dtype=dtype,
    )
