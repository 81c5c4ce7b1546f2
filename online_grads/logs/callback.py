"""What `run` calls between chunks, and a chunk's metrics as named numbers."""

import re
from typing import Any, Protocol

import numpy as np

from online_grads.types import Metrics


class Callback(Protocol):
    """What `run` calls between chunks; what it returns is not looked at.

    An exception that it raises ends the run and reaches the caller as it is, after a last checkpoint if the
    run makes any. Else a checkpoint is written after the callback was called, so that what a log says goes
    at least as far.
    """

    def __call__(self, step: int, metrics: Metrics, /) -> Any:
        """Look at a chunk.

        Args:
            step: steps of the stream done so far, this chunk included.
            metrics: the chunk's, as NumPy arrays with a leading axis of its segments; a field that is not
                kept is None.
        """


def scalars(metrics: Metrics) -> dict[str, float]:
    """A chunk's metrics as a few named numbers, for any logger.

        loss        mean over the chunk
        grad_norm   of the last segment
        finite      fraction of the segments
        info_NAME   mean over the chunk, of the entries of info that are one number per segment

    What is not kept is left out. Names are letters, digits and underscores: `info["noise_loss[0]"]` is
    `info_noise_loss_0`. Numbers that are not finite stay what they are.

    Args:
        metrics: one learner's, with a leading axis of segments or of one segment, without.

    Returns:
        name -> Python float.

    Raises:
        ValueError: the metrics have more axes, as those of many learners have.

    >>> norms = np.array([3.0, 1.0, 2.0])
    >>> scalars(Metrics(norms / 2, norms > 1, norms, None, {"kept": np.array([4, 4, 7])}))
    {'loss': 1.0, 'grad_norm': 2.0, 'finite': 0.6666666666666666, 'info_kept': 5.0}
    """
    fields = {name: getattr(metrics, name) for name in ("loss", "grad_norm", "finite")}
    fields = {name: values for name, values in fields.items() if values is not None}
    axes = max(map(np.ndim, fields.values()), default=1)
    if axes > 1:
        shapes = ", ".join(f"{name} {list(np.shape(values))}" for name, values in fields.items())
        raise ValueError(f"expected one learner's metrics, with an axis of segments at most; got {shapes}")
    if "grad_norm" in fields:
        fields["grad_norm"] = np.atleast_1d(fields["grad_norm"])[-1]
    for name, values in (metrics.info or {}).items():
        if np.ndim(values) == axes:
            fields[re.sub(r"\W+", "_", f"info_{name}").rstrip("_")] = values
    with np.errstate(invalid="ignore", over="ignore"):
        return {name: float(np.mean(np.asarray(values), dtype=np.float64)) for name, values in fields.items()}


def several(*callbacks: Callback) -> Callback:
    """All of them as one callback, called in this order; the first that raises ends it.

    Raises:
        TypeError: one of them cannot be called.

    >>> both = several(lambda step, metrics: print(step), lambda step, metrics: print(scalars(metrics)))
    >>> both(8, Metrics(np.ones(8), None, None, None, {}))
    8
    {'loss': 1.0}
    """
    for callback in callbacks:
        if not callable(callback):
            raise TypeError(f"expected functions of (step, metrics), got {callback!r}")

    def call(step: int, metrics: Metrics, /) -> None:
        for callback in callbacks:
            callback(step, metrics)

    return call
