"""Cells on top of one another, all moved by the same step.

h⁽¹⁾_t = step₁(θ₁, h⁽¹⁾_{t-1}, x_t)          h⁽ˡ⁺¹⁾_t = step_{l+1}(θ_{l+1}, h⁽ˡ⁺¹⁾_{t-1}, output_l(h⁽ˡ⁾_t))
"""

import jax

from online_grads.cells.types import Cell


def stack(*cells: Cell) -> Cell:
    """Cells on top of one another, the input of the first at the bottom.

        h⁽ˡ⁺¹⁾_t = step_{l+1}(θ_{l+1}, h⁽ˡ⁺¹⁾_{t-1}, output_l(h⁽ˡ⁾_t))

    A layer reads the layer below at the same step. Parameters and hidden state are tuples, one
    entry per layer; the output is the top layer's.

    Args:
        cells: at least one `Cell`, from the bottom to the top.

    Returns:
        A `Cell`.

    Raises:
        TypeError: an argument is not a `Cell`.
        ValueError: there is no cell, or a layer's inputs differ from the output of the one below.

    >>> from online_grads.cells import gru, lstm
    >>> params, hidden = (cell := stack(lstm(3, 8), gru(8, 4))).init(jax.random.key(0))
    >>> cell.output(hidden).shape
    (4,)
    >>> stack(lstm(3, 8), gru(7, 4))
    Traceback (most recent call last):
    ...
    ValueError: stack: cells[1] takes inputs of size 7, but cells[0] below it outputs size 8
    """
    if not cells:
        raise ValueError("stack needs at least one cell")
    for layer, cell in enumerate(cells):
        if not isinstance(cell, Cell):
            raise TypeError(f"stack: cells[{layer}] must be a Cell, got {cell!r}")
        if layer and cell.inputs != cells[layer - 1].size:
            raise ValueError(
                f"stack: cells[{layer}] takes inputs of size {cell.inputs}, "
                f"but cells[{layer - 1}] below it outputs size {cells[layer - 1].size}"
            )

    def init(key):
        drawn = [cell.init(k) for cell, k in zip(cells, jax.random.split(key, len(cells)), strict=True)]
        params, hidden = zip(*drawn, strict=True)
        return params, hidden

    def step(params, hidden, x):
        moved = []
        for cell, theta, h in zip(cells, params, hidden, strict=True):
            moved.append(cell.step(theta, h, x))
            x = cell.output(moved[-1])
        return tuple(moved)

    return Cell(init, step, lambda hidden: cells[-1].output(hidden[-1]), cells[0].inputs, cells[-1].size)
