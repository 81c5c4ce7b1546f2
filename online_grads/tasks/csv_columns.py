"""Columns of numbers from a CSV file, or one line that says what is wrong with it and where."""

import csv
import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from online_grads.arguments import counted, unknown

MISSING = ("", "na", "n/a", "nan", "null", "none")


def read_columns(
    path: str | os.PathLike, columns: Sequence[str | int | None], *, delimiter: str = ","
) -> tuple[np.ndarray, list[int]]:
    """Columns of numbers from a CSV file.

    Args:
        path: a UTF-8 file, with or without a row of names.
        columns: names, or places counted from 0; None is the only column of the file.
        delimiter: what is between fields.

    Returns:
        (values, lines): float64 [rows, columns], and the line of the file in which each row stands.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not UTF-8 or not a table of finite numbers in these columns, a column does
            not exist or is constant, there are fewer than two rows.
        TypeError: a column is neither a name nor a place.

    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile(suffix=".csv") as file:
    ...     _ = file.write(b"day,level\\nMon,3\\nTue,5\\n")
    ...     file.flush()
    ...     values, lines = read_columns(file.name, ["level"])
    >>> values.tolist(), lines
    ([[3.0], [5.0]], [2, 3])
    """
    path = Path(path).expanduser()
    names, rows = _table(path, delimiter)
    places = [_place(path, names, column, delimiter) for column in columns]
    number = lambda line, row, i: _number(path, line, names[i], row[i], delimiter)
    values = np.array([[number(line, row, i) for i in places] for line, row in rows])
    for i, column in zip(places, values.T, strict=True):
        if (column == column[0]).all():
            raise ValueError(f"{path}: column {names[i]!r} is constant, {column[0]:g}: nothing to forecast")
    return values, [line for line, _ in rows]


def _table(path: Path, delimiter: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the line and the fields of every row; all rows of the same length."""
    if not isinstance(delimiter, str) or len(delimiter) != 1 or delimiter in '"\r\n':
        raise ValueError(f"delimiter must be one character, no quote and no line end, got {delimiter!r}")
    if not path.is_file():
        raise FileNotFoundError(f"no CSV file at {path}")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")  # drops a byte order mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path} is not UTF-8: {error.reason} in line {line}") from None
    lines = io.StringIO(text.rstrip("\r\n"), newline="")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    try:
        rows = [(reader.line_num, [field.strip() for field in row]) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path} in line {reader.line_num}: {error}") from None
    if not rows:
        raise ValueError(f"{path} is empty")
    first = rows[0][1]
    headed = not all(map(_is_number, first))
    names = first if headed else [str(i) for i in range(len(first))]
    rows = rows[headed:]
    for line, row in rows:
        if len(row) != len(names):
            raise ValueError(
                f"{path} in line {line}: expected {counted(len(names), 'field')}, got {len(row)}"
            )
    if len(rows) < 2:
        raise ValueError(f"{path} has {counted(len(rows), 'row')} of data: expected at least 2")
    return names, rows


def _place(path: Path, names: list[str], column: str | int | None, delimiter: str) -> int:
    if column is None:
        if len(names) > 1:
            raise ValueError(f"{path} has {len(names)} columns: expected one of them, {', '.join(names)}")
        return 0
    if isinstance(column, bool) or not isinstance(column, str | int):
        raise TypeError(f"column must be a name or a place, got {column!r}")
    if isinstance(column, int):
        if not 0 <= column < len(names):
            raise ValueError(f"{path}: column must be in 0 ... {len(names) - 1}, got {column}")
        return column
    if column not in names:
        marks = [mark for mark in ",;\t|" if mark != delimiter and any(mark in name for name in names)]
        hint = f" (fields are split at {delimiter!r}; is delimiter {marks[0]!r}?)" if marks else ""
        raise ValueError(f"{path}: {unknown(f'column {column!r}', column, names)}{hint}")
    if names.count(column) > 1:
        raise ValueError(f"{path} has {names.count(column)} columns {column!r}: give its place, from 0")
    return names.index(column)


def _number(path: Path, line: int, name: str, field: str, delimiter: str) -> float:
    where = f"{path} in line {line}, column {name!r}"
    if field.lower() in MISSING:
        raise ValueError(f"{where}: missing value, {field!r}; fill it in or leave such rows out")
    if not _is_number(field):
        raise ValueError(f"{where}: {field!r} is not a number (fields are split at {delimiter!r})")
    if not math.isfinite(value := float(field)):
        raise ValueError(f"{where}: {field!r} is not finite")
    return value


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return "_" not in field  # Python's own way of writing 1_000
