"""A time series from a CSV file: forecast a column some steps ahead, knowing only its past.

    x_t = (v_t − μ_t) / σ_t          y_t = (v_{t+h} − μ_t) / σ_t

μ_t and σ_t are the running mean and standard deviation of the rows up to t, so that no row knows of a
later one, and v = μ_t + σ_t ŷ_t turns a forecast back into the column's unit.

Reference: Welford 1962, Technometrics 4:419, for the recursion; West 1979, CACM 22:532, with weights.
"""

import math
import os

import jax
import jax.numpy as jnp
import numpy as np

from online_grads.arguments import boolean, counted, float_dtype, positive_int
from online_grads.losses import squared_error
from online_grads.tasks.csv_columns import read_columns
from online_grads.tasks.types import Task


def series(
    path: str | os.PathLike,
    column: str | int | None = None,
    *,
    covariates: tuple[str, ...] = (),
    horizon: int = 1,
    normalise: bool = True,
    memory: int | None = None,
    warmup: int = 10,
    delimiter: str = ",",
    dtype=None,
) -> Task:
    """A time series from a CSV file: forecast a column some steps ahead, knowing only its past.

        x_t = (v_t − μ_t) / σ_t          y_t = (v_{t+h} − μ_t) / σ_t          loss ½ (ŷ_t − y_t)²

    μ_t and σ_t come from `running_statistics`; each column has its own. A pass goes through the file once;
    after it the stream begins anew, hidden state and statistics included. All keys draw the same stream.
    Shown is (ŷ − y)², and the references are its means over a pass for the forecasts v_t and μ_t.

    Args:
        path: a UTF-8 file with one row per step. Its first row has the names of the columns unless all its
            fields are numbers.
        column: name of what is forecast, or its place counted from 0; not needed if it is the only one.
        covariates: names of further columns that x shows.
        horizon: h, in steps.
        normalise: False takes the values as they are, μ = 0 and σ = 1.
        memory: μ and σ forget with this time constant, in steps; by default never.
        warmup: rows of a pass that only μ and σ see before the first forecast, the row of which is the
            last of them; more while σ is 0. Without `normalise` there is none: the first row forecasts.
        delimiter: what is between fields.
        dtype: of x and y, by default JAX's float.

    Returns:
        A `Task` with x [1 + covariates] and y [1], whose episodes are passes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8 or not a table of finite numbers in these columns, a column does
            not exist or is constant, there are too few rows; an argument is out of its range.
        TypeError: an argument is of the wrong type.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".csv") as file:
    ...     _ = file.write(b"day,level\\n1,3\\n2,5\\n3,10\\n")
    ...     file.flush()
    ...     task = series(file.name, "level", warmup=2)
    >>> _, ((x, reset), y) = task.draw(task.init(jax.random.key(0)), 1)
    >>> x.tolist(), y.tolist(), reset.tolist()
    ([[1.0]], [[6.0]], [True])
    >>> task.references
    {'persistence': 25.0, 'running mean': 36.0}
    """
    horizon, warmup = positive_int("horizon", horizon), positive_int("warmup", warmup)
    if memory is not None:
        memory = positive_int("memory", memory, least=2)
    boolean("normalise", normalise)
    if isinstance(covariates, str) or not all(isinstance(name, str) for name in covariates):
        raise TypeError(f"covariates must be names of columns, got {covariates!r}")
    dtype = float_dtype(dtype)
    values, lines = read_columns(path, [column, *covariates], delimiter=delimiter)
    rows = len(values)
    if horizon >= rows:
        raise ValueError(f"{path} has {rows} rows: no value is {horizon} steps after another")

    running, deviation = running_statistics(values, memory=memory)
    mean, begin = running, 0
    if not normalise:
        mean, deviation = np.zeros_like(values), np.ones_like(values)
    else:
        known = np.flatnonzero((deviation != 0).all(axis=1))
        begin = max(warmup - 1, int(known[0]) if known.size else rows)
    end = rows - horizon
    if begin >= end:
        raise ValueError(
            f"{path} has {rows} rows, too few for a forecast {counted(horizon, 'step')} ahead after the "
            f"{counted(warmup, 'row')} of the warmup and the first change of a value"
        )
    normalised = lambda v: (v - mean[begin:end]) / deviation[begin:end]
    with np.errstate(all="ignore"):
        x, future = normalised(values[begin:end]), normalised(values[begin + horizon :])[:, :1]
        xs, ys = x.astype(dtype), future.astype(dtype)
        finite = np.isfinite(np.concatenate([xs, ys, deviation[begin:end]], axis=1)).all(axis=1)
    if not finite.all():
        line = lines[begin + int(np.argmin(finite))]
        raise ValueError(
            f"{path} in line {line}: not finite in {np.dtype(dtype)} when normalised; "
            f"a column is constant for too long for memory={memory}, or its values are too large"
        )
    steps = end - begin

    def draw(position, length):
        where = (position + jnp.arange(length + 1, dtype=jnp.int32)) % steps
        here = where[:-1]
        return where[-1], ((jnp.asarray(xs)[here], here == 0), jnp.asarray(ys)[here])

    mean_square = lambda errors: float(np.mean((errors / deviation[begin:end, 0]) ** 2))
    ahead = values[begin + horizon :, 0]
    return Task(
        init=lambda key: jnp.zeros((), jnp.int32),
        draw=draw,
        example=(jax.ShapeDtypeStruct((values.shape[1],), dtype), jax.ShapeDtypeStruct((1,), dtype)),
        loss=squared_error,
        outputs=1,
        unit="squared error / running variance" if normalise else "squared error",
        scale=2.0,
        references={
            "persistence": mean_square(ahead - values[begin:end, 0]),
            "running mean": mean_square(ahead - running[begin:end, 0]),
        },
        resets=True,
    )


def running_statistics(values: np.ndarray, *, memory: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the rows up to each row.

        a_t = max(1 / t, 1 / memory)     d_t = v_t − μ_{t-1}     μ_t = μ_{t-1} + a_t d_t
        σ²_t = (1 − a_t) (σ²_{t-1} + a_t d_t²)                    t = 1, 2, ...

    Args:
        values: [rows, columns].
        memory: time constant of forgetting, in rows; None weighs all rows alike.

    Returns:
        (μ, σ), each [rows, columns].

    >>> mean, deviation = running_statistics(np.array([[1.0], [3.0], [8.0]]))
    >>> mean.ravel().tolist(), (deviation**2).round(3).ravel().tolist()
    ([1.0, 2.0, 4.0], [0.0, 1.0, 8.667])
    """
    mean, variance = np.zeros_like(values), np.zeros_like(values)
    m, s = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    with np.errstate(over="ignore", invalid="ignore"):  # who asks sees what is not finite
        for t, v in enumerate(values):
            rate = max(1 / (t + 1), 1 / (memory or math.inf))
            d = v - m
            m = m + rate * d
            s = (1 - rate) * (s + rate * d**2)
            mean[t], variance[t] = m, s
    return mean, np.sqrt(variance)
