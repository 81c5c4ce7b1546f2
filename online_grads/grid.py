"""The grid of a sweep in words: `section.key=values`, as after --over.

optimizer.learning_rate=1e-5..1e-2:7:log      7 numbers, both ends among them
run.steps=1000..5000:3:lin                    integers where ends and steps are
estimator.rank=1,2,4                          a list of TOML values
model.hidden=[4,8],[16]                       ... which may be lists
optimizer.name=sgd,adam                       ... or bare words, which are strings
"""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from online_grads.arguments import counted, shown
from online_grads.tables import ConfigError, value_of

RANGE = re.compile(r"([^,:'\"\[\]]*)\.\.([^,:'\"\[\]]*)(?::(.*))?")
# what an estimator may have in place of [run]'s
OWN = ("steps", "updates", "seeds")
MOST = 10_000  # points of a sweep
FORM = "expected a..b:n:log or a..b:n:lin"
# keys that choose what is trained or only say how it is shown
NEVER = ("run.only", "run.fast", "run.axis", "estimator.label")


class Axis(NamedTuple):
    """One key of a config and the values that it takes."""

    key: str  # section.key, as after --set
    values: tuple[Any, ...]  # as TOML gives them
    log: bool = False  # spaced evenly on a logarithmic axis

    @property
    def numeric(self) -> bool:
        """Whether all values are numbers."""
        return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in self.values)

    @property
    def estimator(self) -> int | None:
        """The place in the file of the estimator that it is for; None for all."""
        section, first, *_ = self.key.split(".")
        return int(first) if section == "estimator" and first.isdigit() else None

    @property
    def place(self) -> str:
        """What it sets of an estimator, however it is written.

        >>> Axis("estimator.0.optimizer.b1", ()).place, Axis("estimator.updates", ()).place
        ('optimizer.b1', 'run.steps')
        """
        section, *keys = [name for name in self.key.split(".") if not name.isdigit()]
        if section == "estimator" and keys[0] in ("optimizer", "model"):
            section, *keys = keys
        if section in ("estimator", "run") and keys[0] in OWN:
            section, keys = "run", ["seeds" if keys[0] == "seeds" else "steps"]
        return ".".join([section, *keys])


def axes_of(texts: Iterable[str]) -> list[Axis]:
    """What the --over of a command line say.

    Raises:
        ConfigError: one of them does not read as an axis, or two are of the same key.

    >>> [axis] = axes_of(["optimizer.learning_rate=1e-4..1e-2:3:log"])
    >>> axis.values
    (0.0001, 0.001, 0.01)
    """
    found: list[Axis] = []
    for text in texts:
        axis = axis_of(text)
        if any(axis.key == other.key for other in found):
            raise ConfigError(f"--over {text}: {axis.key} is swept already")
        found.append(axis)
    return found


def axis_of(text: str) -> Axis:
    """One axis.

    Raises:
        ConfigError: it does not read as one.

    >>> axis_of("estimator.rank=1,2,4").values, axis_of("model.hidden=[4,8],[16]").values
    ((1, 2, 4), ([4, 8], [16]))
    >>> axis_of("run.steps=100..300:3:lin").values, axis_of("model.leak=0..1:3:lin").values
    ((100, 200, 300), (0.0, 0.5, 1.0))
    """
    blame = f"--over {text}"
    key, equals, values = (part.strip() for part in text.partition("="))
    section, *keys = key.split(".")
    if not equals or not [name for name in keys if not name.isdigit()] or not all([section, *keys]):
        raise ConfigError(f"{blame}: expected section.key=values")
    plain = ".".join([section, *(name for name in keys if not name.isdigit())])
    if plain in NEVER or section in ("compare", "fast"):
        raise ConfigError(f"{blame}: {key} changes nothing about a training")
    between = RANGE.fullmatch(values)
    if between is not None and (between[3] is not None or _number(between[1]) is not None):
        return Axis(key, *_range(blame, *between.groups()))
    listed = tuple(value_of(part, blame) for part in _split(values))
    for i, value in enumerate(listed):
        if any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in listed[:i]):
            raise ConfigError(f"{blame}: {shown(value)} is there twice")
    return Axis(key, listed)


def printed(values: Sequence[Any]) -> list[str]:
    """Values for reading: numbers with as few digits as tell them apart.

    >>> printed([1e-4, 10**-3.5, 1e-3]), printed([0.12345, 0.12346]), printed([[4, 8], "sgd", True, 12])
    (['0.0001', '0.000316', '0.001'], ['0.12345', '0.12346'], ['[4, 8]', 'sgd', 'true', '12'])
    """

    def text(value: Any, digits: int) -> str:
        if isinstance(value, bool):
            return str(value).lower()
        return f"{value:.{digits}g}" if isinstance(value, float) else str(value)

    for digits in range(3, 18):
        texts = [text(value, digits) for value in values]
        if len({*texts}) == len(texts):
            break
    return texts


def _range(blame: str, first: str, last: str, rest: str | None) -> tuple[tuple[Any, ...], bool]:
    low, high = _number(first), _number(last)
    if low is None or high is None or rest is None:
        raise ConfigError(f"{blame}: {FORM}")
    amount, _, spacing = rest.partition(":")
    if spacing not in ("log", "lin") or not re.fullmatch(r"-?\d+", amount):
        raise ConfigError(f"{blame}: {FORM}")
    count = int(amount)
    if count < 1:
        raise ConfigError(f"{blame}: expected 1 value or more, got {count}")
    if low > high:
        raise ConfigError(f"{blame}: the range is empty, {first.strip()} is above {last.strip()}")
    if spacing == "log" and low <= 0:
        raise ConfigError(f"{blame}: log needs numbers above 0, got {first.strip()}")
    if (count == 1) != (low == high):
        raise ConfigError(f"{blame}: {counted(count, 'value')} cannot have the ends {low} and {high}")
    if count > MOST:
        raise ConfigError(f"{blame}: {count} points are more than {MOST}")
    # 15 digits, where the last ones are noise: 1e-3 is not 0.0009999999999999998
    space = np.geomspace if spacing == "log" else np.linspace
    inner = [float(f"{value:.15g}") for value in space(float(low), float(high), count)[1:-1]]
    values = [low, *inner, high][:count]
    if isinstance(low, int) and isinstance(high, int) and all(value == int(value) for value in values):
        return tuple(map(int, values)), spacing == "log"
    return tuple(map(float, values)), spacing == "log"


def _number(text: str) -> int | float | None:
    text = text.strip()
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _split(text: str) -> list[str]:
    """At the commas that are neither in brackets nor in quotes."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
