"""Numbers that sum up a training run: where its loss began, where it ended, which seeds diverged."""

import math
from typing import NamedTuple

import numpy as np

from online_grads.experiment import Result


class Score(NamedTuple):
    """One estimator at one learning rate; losses in the task's unit, None where there is no number.

    The means of losses go over the seeds that did not diverge; if all did, over those whose losses are
    finite.
    """

    learning_rate: float
    loss_first: float | None  # mean over the first tenth of the updates
    loss_last: float | None  # mean over the last tenth
    loss_last_se: float | None  # standard error of loss_last
    averaged: int  # seeds in these means
    diverged: int  # seeds that diverged
    level: float | None = None  # where a curriculum ended, mean over all seeds
    level_se: float | None = None  # standard error of level


def scores(result: Result) -> list[Score]:
    """The scores of an estimator at its learning rates, in the order of the config."""
    rates = result.config.optimizer.learning_rate
    found = [_score(*row) for row in zip(rates, *tenths(result), diverged(result), strict=True)]
    if result.levels is None:
        return found
    levels = result.levels.reached[..., -1].astype(np.float64)  # [rates, seeds]
    return [
        score._replace(level=float(ended.mean()), level_se=_standard_error(ended))
        for score, ended in zip(found, levels, strict=True)
    ]


def diverged(result: Result) -> np.ndarray:
    """Which runs become non-finite or end above where they began, [rates, seeds] bool.

    With a curriculum the loss may rise with the level: there only the first counts.
    """
    first, last = tenths(result)
    if not result.loss.size:
        return np.zeros(first.shape, bool)
    rose = ~(last <= first) if result.levels is None else ~np.isfinite(last)
    return ~result.finite.all(axis=-1) | rose


def best(result: Result) -> int:
    """The index of the learning rate to show: fewest diverged seeds, then lowest final loss.

    With a curriculum the highest level comes before the loss, which is that of tasks of different length.
    """
    found = scores(result)
    return min(range(len(found)), key=lambda i: rank(found[i]))


def rank(score: Score) -> tuple[float, ...]:
    """What is compared for the best score, which has the lowest."""
    level, loss = score.level, score.loss_last
    return score.diverged, 0.0 if level is None else -level, math.inf if loss is None else loss


def never_advanced(result: Result) -> bool:
    """Whether a curriculum stayed where it began, on every seed at every learning rate."""
    if result.levels is None:
        return False
    reached = result.levels.reached
    return bool((reached == reached[..., :1]).all())


def tenths(result: Result) -> tuple[np.ndarray, np.ndarray]:
    """Mean loss over the first and the last tenth, [rates, seeds]."""
    if not result.loss.size:
        return np.full(result.loss.shape[:2], np.nan), np.full(result.loss.shape[:2], np.nan)
    count = max(1, result.loss.shape[-1] // 10)
    with np.errstate(all="ignore"):  # a diverging loss may overflow
        first, last = result.loss[..., :count], result.loss[..., -count:]
        return first.mean(axis=-1, dtype=np.float64), last.mean(axis=-1, dtype=np.float64)


def _score(rate: float, first: np.ndarray, last: np.ndarray, lost: np.ndarray) -> Score:
    counted = np.isfinite(first) & np.isfinite(last) & (lost.all() | ~lost)
    first, last = first[counted], last[counted]
    if not last.size:
        return Score(rate, None, None, None, 0, int(lost.sum()))
    with np.errstate(all="ignore"):
        error = _standard_error(last)
        return Score(rate, float(first.mean()), float(last.mean()), error, last.size, int(lost.sum()))


def _standard_error(values: np.ndarray) -> float | None:
    """Of the mean of values [seeds]; None for a single one."""
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else None
