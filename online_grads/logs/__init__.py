"""Callbacks that write a run down: JSON lines, TensorBoard, and the numbers for any other logger.

`run` calls `callback(step, metrics)` between chunks; any function of the two will do, see `Callback`. Those
here share `scalars`, which makes named numbers of a chunk's metrics, so that another logger takes one line:

    run(..., callback=lambda step, metrics: wandb.log(scalars(metrics), step=step))
"""

from online_grads.logs.callback import Callback, scalars, several
from online_grads.logs.json_lines import json_lines, read_json_lines
from online_grads.logs.log import Log
from online_grads.logs.tensorboard import tensorboard

__all__ = ["Callback", "Log", "json_lines", "read_json_lines", "scalars", "several", "tensorboard"]
