"""The parameters that an experiment with checkpoints has learned, to go on with them elsewhere."""

import os
from functools import partial
from pathlib import Path

import jax

from online_grads.assembly import x64
from online_grads.experiment import like
from online_grads.resume import CHECKPOINTS, begun, config_of, newest
from online_grads.trainer import begin, trainer
from online_grads.types import PyTree


def learned(checkpoints: str | os.PathLike) -> dict[str, PyTree]:
    """The parameters of every estimator's networks at its newest checkpoint.

    After a run that was not interrupted these are the final ones. `online_grads.assembly.model_of` makes
    the model that they belong to, from the config.

    Args:
        checkpoints: the folder that was given to `train`, or the DIR of
            `online-grads run --checkpoint-every N --out DIR`. Files that the task reads must be there.

    Returns:
        label -> parameters, as NumPy arrays [learning rates, seeds, ...].

    Raises:
        ResumeError: there are no checkpoints in the folder.
        CheckpointError: one is damaged.

    >>> import tempfile
    >>> from online_grads.config import parse
    >>> from online_grads.experiment import train
    >>> config = parse({
    ...     "task": {"name": "influence_balancing"},
    ...     "run": {"steps": 20, "seeds": 3},
    ...     "optimizer": {"name": "sgd", "learning_rate": [1e-4, 1e-5]},
    ...     "estimator": [{"name": "tbptt", "window": 10}],
    ... })
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = train(config, checkpoints=folder, every=10)
    ...     params = learned(folder)["tbptt(10)"]
    >>> params["theta"].shape, jax.tree.map(lambda leaf: leaf[1, 2], params)["theta"].shape
    ((2, 3), ())
    """
    folder = Path(checkpoints)
    if not begun(folder) and begun(folder / CHECKPOINTS):
        folder = folder / CHECKPOINTS
    config, params = config_of(folder), {}
    with x64(config.run.precision == "float64"):
        task, model, starts = begin(config)
        for chosen in config.estimators:
            shapes = partial(like, trainer(config, task, model, starts, chosen))
            if (found := newest(folder, chosen, shapes)) is not None:
                params[chosen.label] = jax.device_get(found[1].state[0].params)
    return params
