"""Recurrent cells as pure functions on plain pytrees; any other (init, step) pair serves as well."""

from collections.abc import Callable

from online_grads.cells.alif import AlifHidden, alif
from online_grads.cells.columnar_lstm import columnar_lstm
from online_grads.cells.columnar_rnn import columnar_rnn
from online_grads.cells.constructive import ConstructiveHidden, constructive, constructive_columns
from online_grads.cells.elstm import ElstmHidden, elstm
from online_grads.cells.filtered import FilteredHidden, filtered
from online_grads.cells.gru import gru
from online_grads.cells.gru_reset_before import gru_reset_before
from online_grads.cells.lif import LifHidden, lif
from online_grads.cells.low_pass import low_pass
from online_grads.cells.lru import LruHidden, lru
from online_grads.cells.lstm import LstmHidden, lstm
from online_grads.cells.rtu import RtuHidden, rtu
from online_grads.cells.stack import stack
from online_grads.cells.types import Cell
from online_grads.cells.vanilla_rnn import vanilla_rnn

# name -> constructor (inputs, hidden, **options), for configuration files
CELLS: dict[str, Callable[..., Cell]] = {
    "alif": alif,
    "columnar_lstm": columnar_lstm,
    "columnar_rnn": columnar_rnn,
    "constructive_columns": constructive_columns,
    "elstm": elstm,
    "gru": gru,
    "gru_reset_before": gru_reset_before,
    "lif": lif,
    "low_pass": low_pass,
    "lru": lru,
    "lstm": lstm,
    "rtu": rtu,
    "vanilla_rnn": vanilla_rnn,
}

__all__ = [
    "CELLS",
    "AlifHidden",
    "Cell",
    "ConstructiveHidden",
    "ElstmHidden",
    "FilteredHidden",
    "LifHidden",
    "LruHidden",
    "LstmHidden",
    "RtuHidden",
    "alif",
    "columnar_lstm",
    "columnar_rnn",
    "constructive",
    "constructive_columns",
    "elstm",
    "filtered",
    "gru",
    "gru_reset_before",
    "lif",
    "low_pass",
    "lru",
    "lstm",
    "rtu",
    "stack",
    "vanilla_rnn",
]
