"""The series task: nothing of the future in the past, its references, and files that are no series."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from online_grads import tasks
from online_grads.tasks.csv_columns import read_columns
from online_grads.tasks.series import running_statistics

RNG = np.random.default_rng(0)
VALUES = np.cumsum(RNG.normal(size=60)) + 100
OTHER = RNG.normal(size=60)


@pytest.fixture
def written(tmp_path):
    def write(content, name="data.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def csv(written):
    """A file with a day, a level and a temperature."""

    def write(level=VALUES, temperature=OTHER):
        pairs = zip(level.tolist(), temperature.tolist(), strict=True)
        rows = [f"{day},{a!r},{b!r}" for day, (a, b) in enumerate(pairs)]
        return written("\n".join(["day,level,temperature", *rows]) + "\n")

    return write


def stream(task, length, seed=0):
    draw = jax.jit(task.draw, static_argnums=1)
    (xs, reset), ys = draw(task.init(jax.random.key(seed)), length)[1]
    return np.asarray(xs), np.asarray(reset), np.asarray(ys)


def expected(horizon, memory=None, warmup=10, values=VALUES):
    """x and y of a pass, from the definition: weighted means over all rows so far."""
    x, y = [], []
    for t in range(warmup - 1, len(values) - horizon):
        past = values[: t + 1]
        if memory is None:
            weights = np.ones(t + 1)
        else:  # what the recursion with the rates max(1/t, 1/memory) gives to each row
            rates = np.maximum(1 / np.arange(1, t + 2), 1 / memory)
            weights = rates * np.append(np.cumprod((1 - rates)[:0:-1])[::-1], 1.0)
        mean = np.average(past, weights=weights)
        deviation = np.sqrt(np.average((past - mean) ** 2, weights=weights))
        x.append((values[t] - mean) / deviation)
        y.append((values[t + horizon] - mean) / deviation)
    return np.array(x), np.array(y)


@pytest.mark.parametrize(("horizon", "memory", "warmup"), [(1, None, 10), (5, 8, 20), (3, 2, 2)])
def test_a_pass_follows_its_equations_and_starts_over(csv, horizon, memory, warmup):
    task = tasks.series(csv(), "level", horizon=horizon, memory=memory, warmup=warmup)
    x, y = expected(horizon, memory, warmup)
    xs, reset, ys = stream(task, 2 * len(x) + 3)
    np.testing.assert_allclose(xs[:, 0], np.resize(x, len(xs)), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(ys[:, 0], np.resize(y, len(ys)), rtol=1e-9, atol=1e-12)
    assert np.flatnonzero(reset).tolist() == [0, len(x), 2 * len(x)]


@pytest.mark.parametrize("memory", [None, 8])
def test_only_the_past_is_known(csv, memory):
    def inputs(row):
        values = VALUES.copy()
        values[row] += 7.0
        return stream(tasks.series(csv(values), "level", horizon=2, memory=memory), 49)

    before = stream(tasks.series(csv(), "level", horizon=2, memory=memory), 49)
    row, first = 30, 9  # the first forecast is made in row 9
    xs, _, ys = inputs(row)
    np.testing.assert_array_equal(xs[: row - first], before[0][: row - first])
    # what is there to see is seen: from that row on all steps differ, and before it the one that forecasts it
    assert (xs[row - first :] != before[0][row - first :]).all()
    changed = np.flatnonzero(ys != before[2]) + first
    assert changed.tolist() == [row - 2, *range(row, first + 49)]
    assert (inputs(3)[0] != before[0]).all()


def test_references_are_those_of_the_forecasts(csv):
    x, y = expected(4)
    task = tasks.series(csv(), "level", horizon=4)
    np.testing.assert_allclose(task.references["persistence"], np.mean((y - x) ** 2), rtol=1e-10)
    np.testing.assert_allclose(task.references["running mean"], np.mean(y**2), rtol=1e-10)
    # shown = scale × loss
    xs, _, ys = stream(task, len(x))
    shown = task.scale * jax.vmap(task.loss)(xs, ys).mean()
    np.testing.assert_allclose(shown, task.references["persistence"], rtol=1e-10)
    plain = tasks.series(csv(), "level", horizon=4, normalise=False)
    np.testing.assert_allclose(
        plain.references["persistence"], np.mean((VALUES[4:] - VALUES[:-4]) ** 2), rtol=1e-10
    )
    means = np.cumsum(VALUES) / np.arange(1, 61)
    np.testing.assert_allclose(
        plain.references["running mean"], np.mean((VALUES[4:] - means[:-4]) ** 2), rtol=1e-10
    )
    assert plain.unit != task.unit


def test_values_as_they_are_and_covariates(csv):
    task = tasks.series(csv(), 1, normalise=False, covariates=("temperature",))
    xs, reset, ys = stream(task, 60)
    np.testing.assert_array_equal(xs[:59], np.stack([VALUES, OTHER], 1)[:59])
    np.testing.assert_array_equal(ys[:59, 0], VALUES[1:])
    assert np.flatnonzero(reset).tolist() == [0, 59]
    task = tasks.series(csv(), "level", covariates=("temperature",), dtype=jnp.float32)
    xs, _, _ = stream(task, 50)
    np.testing.assert_allclose(xs[:, 0], expected(1)[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(xs[:, 1], expected(1, values=OTHER)[0], rtol=1e-5, atol=1e-6)
    assert xs.dtype == np.float32


def test_statistics_of_a_large_mean_keep_their_digits():
    mean, deviation = running_statistics(1e9 + OTHER[:, None])
    np.testing.assert_allclose(deviation[-1], OTHER.std(), rtol=1e-6)
    np.testing.assert_allclose(mean[-1], 1e9 + OTHER.mean(), rtol=1e-15)


def test_the_first_forecast_waits_until_something_has_changed(csv):
    task = tasks.series(csv(np.append(np.full(40, 5.0), VALUES[:20])), "level")
    assert np.flatnonzero(stream(task, 40)[1]).tolist() == [0, 19, 38]


def test_forms_of_a_file(written):
    rows = [[1.0], [-2.5], [3e3]]
    for content, options in [
        ("v\n1\n-2.5\n3e3", {}),
        ("1\n-2.5\n3e3\n\n\n", {}),
        ("\ufeffv\r\n1\r\n-2.5\r\n3e3\r\n", {"column": "v"}),
        ('"a;b"; v \nx; 1\n;-2.5\n"y\ny";3e3\n', {"column": "v", "delimiter": ";"}),
        ("a\tv\tv\n\t\t1\n\t\t-2.5\n\t\t3e3\n", {"column": 2, "delimiter": "\t"}),
    ]:
        path, column = written(content), options.pop("column", None)
        values, lines = read_columns(path, [column], **options)
        assert values.tolist() == rows
        assert len(lines) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"v\n", "has 0 rows of data: expected at least 2"),
        (b"v\n1\n", "has 1 row of data: expected at least 2"),
        (b"v\n1\n\xff\n", "is not UTF-8: invalid start byte in line 3"),
        (b"v\n1\n\n3\n", "in line 3: expected 1 field, got 0"),
        (b"v,w\n1,2\n3\n", "in line 3: expected 2 fields, got 1"),
        (b"v,w\n1,2\n3,4,5\n", "in line 3: expected 2 fields, got 3"),
        (b'v\n1\n"2\n', "in line 3: unexpected end of data"),
        (b"v,w\n1,2\n3,4\n", "has 2 columns: expected one of them, v, w"),
        (b"v\n1\nNA\n", r"in line 3, column 'v': missing value, 'NA'"),
        (b"v\n1\nnan\n", r"in line 3, column 'v': missing value, 'nan'"),
        (b'v\n1\n""\n', r"in line 3, column 'v': missing value, ''"),
        (b"v\n1\nlow\n", r"in line 3, column 'v': 'low' is not a number \(fields are split at ','\)"),
        (b"v\n1\n1_000\n", r"in line 3, column 'v': '1_000' is not a number"),
        (b"v\n1\n-inf\n", r"in line 3, column 'v': '-inf' is not finite"),
        (b"v\n2\n2\n2\n", "column 'v' is constant, 2: nothing to forecast"),
        (b"1\n2\nx\n", "in line 3, column '0': 'x' is not a number"),
    ],
)
def test_files_that_are_no_series(written, content, message):
    path = written(content)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}:? {message}"):
        tasks.series(path)


def test_missing_values_matter_only_where_they_are_read(written):
    path = written("day,v\nMon,1\n,2\nTue,4\n")
    assert read_columns(path, ["v"])[0].ravel().tolist() == [1, 2, 4]


def test_bad_arguments(csv, written, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no CSV file at .*absent.csv"):
        tasks.series(tmp_path / "absent.csv")
    with pytest.raises(FileNotFoundError, match="no CSV file at"):
        tasks.series(tmp_path)
    for arguments, kind, message in [
        (
            {"column": "levle"},
            ValueError,
            "unknown column 'levle'; did you mean 'level'\\? possible: day, level, temperature",
        ),
        ({"column": 3}, ValueError, r"column must be in 0 \.\.\. 2, got 3"),
        ({"column": -1}, ValueError, r"column must be in 0 \.\.\. 2, got -1"),
        ({"column": True}, TypeError, "column must be a name or a place, got True"),
        ({"covariates": ("humidity",)}, ValueError, "unknown column 'humidity'"),
        ({"covariates": "day"}, TypeError, "covariates must be names of columns, got 'day'"),
        ({"horizon": 0}, ValueError, "horizon must be at least 1, got 0"),
        ({"horizon": 60}, ValueError, "has 60 rows: no value is 60 steps after another"),
        ({"horizon": 51}, ValueError, "has 60 rows, too few for a forecast 51 steps ahead after the 10 rows"),
        ({"warmup": 60}, ValueError, "has 60 rows, too few"),
        ({"warmup": 0}, ValueError, "warmup must be at least 1, got 0"),
        ({"memory": 1}, ValueError, "memory must be at least 2, got 1"),
        ({"normalise": 1}, TypeError, "normalise must be True or False, got 1"),
        ({"delimiter": ", "}, ValueError, "delimiter must be one character.*got ', '"),
        ({"dtype": int}, TypeError, "dtype must be a real floating dtype, got int"),
    ]:
        with pytest.raises(kind, match=message):
            tasks.series(csv(), **{"column": "level", **arguments})
    assert stream(tasks.series(csv(), "level", horizon=50), 3)[1].all()
    with pytest.raises(ValueError, match=r"has 2 columns 'v': give its place, from 0"):
        tasks.series(written("v,v\n1,2\n3,4\n"), "v")
    # a sensor that stands still for longer than the memory, then moves
    still = np.concatenate([VALUES[:12], np.full(2000, 5.0), VALUES[:12]])
    path = written("\n".join(map(repr, still.tolist())))
    with pytest.raises(ValueError, match=r"in line \d+: not finite in float64 .* too long for memory=2,"):
        tasks.series(path, memory=2)
    assert tasks.series(path).references
    with pytest.raises(ValueError, match="or its values are too large"):
        tasks.series(written("\n".join(f"{value}e300" for value in VALUES)))


def test_the_line_of_a_row(written):
    # a field goes over two lines: a row stands where it ends
    path = written('note;v\n"a\nb";1\n;2\n;3e300\n;4e300\n')
    assert read_columns(path, ["v"], delimiter=";")[1] == [3, 4, 5, 6]
    with pytest.raises(ValueError, match="in line 5: not finite in float64"):
        tasks.series(path, "v", delimiter=";", warmup=2)


@pytest.mark.parametrize(
    ("header", "delimiter", "hint"),
    [("day;level", ",", "';'"), ("day\tlevel", ",", r"'\t'"), ("day,level", ";", "','")],
)
def test_fields_that_are_split_at_something_else(written, header, delimiter, hint):
    path = written(f"{header}\n1\n2\n")
    hint = f"(fields are split at {delimiter!r}; is delimiter {hint}?)"
    with pytest.raises(ValueError, match=r"unknown column 'level'; .*" + re.escape(hint)):
        tasks.series(path, "level", delimiter=delimiter)
    with pytest.raises(ValueError, match=r"unknown column 'level'; possible: rest$"):
        tasks.series(written("rest\n1\n2\n"), "level", delimiter=delimiter)


def test_the_sunspots_are_complete():
    task = tasks.series("configs/data/sunspots.csv", "sunspots", horizon=12)
    values, _ = read_columns("configs/data/sunspots.csv", ["sunspots"])
    assert values.shape == (260 * 12, 1)
    assert values.min() >= 0
    # ten passes, so that the last tenth of the configured run is one
    assert np.flatnonzero(stream(task, 3100)[1]).tolist() == [0, 3099]
    assert task.references["persistence"] < task.references["running mean"]
