"""What a cell is: the recurrent core of a model, without loss and readout."""

from collections.abc import Callable
from typing import NamedTuple


class Cell(NamedTuple):
    """A recurrent core on plain pytrees.

    `output` reads from the hidden state the vector that a readout, or the next layer of a stack,
    sees: an LSTM's h, not its c.
    """

    init: Callable  # key -> (params, hidden)
    step: Callable  # (params, hidden, x [inputs]) -> hidden
    output: Callable  # hidden -> [size]
    inputs: int  # size of x
    size: int  # size of what output returns
