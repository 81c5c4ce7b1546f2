"""Recurrent cells as pure functions on plain pytrees; any other (init, step) pair serves as well."""

from collections.abc import Callable

from online_grads.cells.gru import gru
from online_grads.cells.gru_reset_before import gru_reset_before
from online_grads.cells.lstm import LstmHidden, lstm
from online_grads.cells.stack import stack
from online_grads.cells.types import Cell
from online_grads.cells.vanilla_rnn import vanilla_rnn

# name -> constructor (inputs, hidden, **options), for configuration files
CELLS: dict[str, Callable[..., Cell]] = {
    "gru": gru,
    "gru_reset_before": gru_reset_before,
    "lstm": lstm,
    "vanilla_rnn": vanilla_rnn,
}

__all__ = ["CELLS", "Cell", "LstmHidden", "gru", "gru_reset_before", "lstm", "stack", "vanilla_rnn"]
