"""Sweeps: how many programs, the same losses as trained alone, what is written, refused and interrupted."""

import functools
import json
import signal
import tomllib

import jax
import numpy as np
import pytest

from online_grads import sweep_report, tasks
from online_grads.cli import main
from online_grads.config import parse
from online_grads.experiment import Result, train
from online_grads.grid import axes_of
from online_grads.grid_points import grid
from online_grads.scores import scores
from online_grads.sweep_plots import sweep_curves
from online_grads.sweep_references import shared
from online_grads.sweeping import train_grid
from online_grads.tables import ConfigError

CONFIG = """
[task]
name = "influence_balancing"
[run]
updates = 20
seeds = 2
precision = "float64"
[optimizer]
name = "sgd"
learning_rate = 1e-4
[[estimator]]
name = "es"
label = "ES, 2"
window = 10
particles = 2
[[estimator]]
name = "tbptt"
window = 10
seeds = 1
"""
UNIT = "½(s₀ − 1)²"
OVER = ["optimizer.learning_rate=1e-5..1e-3:3:log", "estimator.sigma=-1.0,1e-4,1e-2"]


@functools.cache
def swept():
    return train_grid(grid(parse(tomllib.loads(CONFIG)), axes_of(OVER)))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def quick(monkeypatch):
    """Training that gives losses at once: lowest at a rate of 1e-4. It may be told to raise instead."""
    errors = {}

    def trained(task, trainer):
        quick.calls += 1
        if quick.calls in errors:
            raise errors[quick.calls]
        chosen = trainer.config
        level = 1 + np.abs(np.log10(chosen.optimizer.learning_rate) + 4)[:, None, None]
        loss = level * np.linspace(3, 1, 20) + 0.1 * np.arange(chosen.seeds)[:, None]
        loss = np.where(level > 5, 1e200 / loss, loss)  # too high a rate or too low
        result = Result(chosen, loss, np.ones(loss.shape, bool), loss, None, 1e-6, 0.1, 8)
        return result, quick.failure

    quick = trained
    quick.calls, quick.failure, quick.errors = 0, None, errors
    monkeypatch.setattr("online_grads.sweeping.trained", trained)
    return quick


def sweep(*over, optimizer=None, **run):
    tables = tomllib.loads(CONFIG)
    tables["run"] |= run
    tables["optimizer"] |= optimizer or {}
    return train_grid(grid(parse(tables, source="here.toml"), axes_of(over)))


def test_numbers_share_a_program_and_every_point_is_as_if_trained_alone():
    found = swept()
    assert found.programs == 2
    assert len(found.rows) == found.points == 12
    refused = [row for row in found.rows if row.refused is not None]
    assert [row.point.values["estimator.sigma"] for row in refused] == [-1.0] * 3
    assert all("sigma must be above 0, got -1.0" in row.refused for row in refused)
    (row,) = [row for row in found.rows if [*row.point.values.values()] == [1e-3, 1e-4]]
    (alone,) = train(row.point.config).results
    assert row.score.loss_last == pytest.approx(scores(alone)[0].loss_last, rel=1e-9)
    # the other points have other losses
    others = [other.score.loss_last for other in found.rows if other.score is not None and other is not row]
    assert min(abs(np.array(others) / row.score.loss_last - 1)) > 1e-6


def test_a_figure_has_a_panel_for_each_key_and_a_line_for_each_estimator():
    figure = sweep_curves(sweep_report.panels(swept()), ylabel="loss")
    rate, sigma = figure.axes
    assert (rate.get_xlabel(), sigma.get_xlabel()) == ("optimizer.learning_rate", "estimator.sigma")
    assert [line.get_label() for line in rate.lines] == ["ES, 2", "tbptt(10)"]
    assert (rate.get_xscale(), sigma.get_xscale()) == ("log", "linear")
    for line, rows in zip(rate.lines, [swept().rows[:9], swept().rows[9:]], strict=True):
        least = [
            min(r.score.loss_last for r in rows if r.score and r.point.values[OVER[0].split("=")[0]] == x)
            for x in line.get_xdata()
        ]
        np.testing.assert_allclose(line.get_ydata(), least)
    # a refused value is a gap, and an estimator that does not take the key is level
    assert np.isnan(sigma.lines[0].get_ydata()).tolist() == [True, False, False]
    assert len({*sigma.lines[1].get_ydata()}) == 1


def test_the_command_writes_configs_that_give_the_same_loss(here, capsys):
    over = [part for text in (OVER[0], "estimator.sigma=-1.0,1e-4") for part in ("--over", text)]
    assert main(["sweep", "small.toml", *over, "--set", "run.seed=3", "--seeds", "2"]) == 0
    out, err = capsys.readouterr()
    folder = here / "runs" / "small-sweep"
    names = "best_ES_2.toml best_tbptt_10.toml sweep.json sweep.pdf sweep.png"
    assert sorted(path.name for path in folder.iterdir()) == names.split()
    assert err == ""
    assert out.splitlines()[0].split()[:3] == ["estimator", "optimizer.learning_rate", "estimator.sigma"]
    assert "refused: ES, 2, 3 points: small.toml: estimator.0 (es): sigma must be above 0" in out
    assert "9 points in 2 programs: " in out
    assert out.splitlines()[-1] == "written to runs/small-sweep"
    found = json.loads((folder / "sweep.json").read_text())
    assert found["axes"]["optimizer.learning_rate"] == [1e-5, 1e-4, 1e-3]
    best = {point["estimator"]: point for point in found["points"] if point["best"]}
    for label, name in (("ES, 2", "best_ES_2"), ("tbptt(10)", "best_tbptt_10")):
        text = (folder / f"{name}.toml").read_text()
        assert text.startswith(f"# {label}: loss ")
        assert "# online-grads sweep small.toml --over" in text
        chosen = parse(tomllib.loads(text))
        assert chosen.run.seed == 3
        assert chosen.estimators[0].label == label
        (result,) = train(chosen).results
        assert scores(result)[0].loss_last == pytest.approx(best[label]["loss_last"], rel=1e-9)
        assert len(best[label]["loss_last_of_seeds"]) == chosen.estimators[0].seeds


@pytest.mark.parametrize(
    ("over", "optimizer", "programs"),
    [
        (["optimizer.momentum=0.0,0.5,0.9", "optimizer.learning_rate=1,2"], {}, 2),
        (["optimizer.slowdown=0.0,0.5"], {}, 4),  # which a number alone can switch off
        (["optimizer.decay=0.8,0.9", "optimizer.slowdown=0.0,0.5"], {"name": "rmsprop"}, 4),
        (["optimizer.name=sgd,rmsprop"], {}, 4),
        (["optimizer.nesterov=true,false"], {"momentum": 0.9}, 4),
        (["estimator.window=5,10", "optimizer.learning_rate=1,2"], {}, 4),
        (["run.seed=0,1,2"], {}, 6),
        (["run.precision=float32,float64"], {}, 4),
    ],
)
def test_how_many_programs(quick, over, optimizer, programs):
    found = sweep(*over, optimizer=optimizer)
    assert found.programs == quick.calls == programs
    assert all(row.score is not None for row in found.rows)


def test_the_table_of_many_points_has_the_best(quick):
    found = sweep("optimizer.learning_rate=1e-6..1e-2:41:log")
    lines = sweep_report.table(found).splitlines()
    assert [line.split()[0] for line in lines[1:11]] == ["ES,"] * 5 + ["tbptt(10)"] * 5
    assert [line.split()[2:4] for line in lines[1:3]] == [["*", "0.0001"], ["7.94e-05", "1.208"]]
    assert lines[11] == "… the best of each estimator; sweep.json has all 82 points"


def test_what_diverges_does_not_set_the_range_of_the_figure(quick):
    found = sweep("optimizer.learning_rate=1e-5,1e-4,10.0")
    figure = sweep_curves(sweep_report.panels(found), ylabel="loss", references={"chance": 5.0})
    (axes,) = figure.axes
    assert axes.lines[0].get_ydata()[-1] > 1e198
    assert axes.get_ylim() == pytest.approx((0.87, 5.2), abs=0.2)
    assert "chance" in [text.get_text() for text in axes.texts]
    assert [row.score.diverged for row in found.rows] == [0, 0, 2, 0, 0, 1]


def test_a_best_value_on_the_edge_is_said(quick):
    said = sweep_report.table(sweep("optimizer.learning_rate=1e-8..1e-6:3:log"))
    assert "tbptt(10): the best optimizer.learning_rate, 1e-06, is the largest tried" in said
    said = sweep_report.table(sweep("optimizer.learning_rate=1e-3,1e-2,1e-1"))
    assert "tbptt(10): the best optimizer.learning_rate, 0.001, is the smallest tried" in said
    for inside in ("optimizer.learning_rate=1e-5..1e-3:3:log", "optimizer.learning_rate=1e-3,1e-2"):
        assert " tried" not in sweep_report.table(sweep(inside))


def test_reference_levels_are_those_of_each_point_and_units_are_not_mixed(here, quick, monkeypatch):
    def toy(*, delay: int = 1, unit: str = UNIT, dtype=None):
        task = tasks.influence_balancing(dtype=dtype)
        return task._replace(references={"chance": 4.0, f"recalls {delay}": 1 / delay}, unit=unit)

    monkeypatch.setitem(tasks.TASKS, "toy", toy)
    found = sweep("task.name=toy", "task.delay=2,4", f"task.unit='{UNIT}',nats", only=["ES, 2"])
    said = [line.split("  ")[0] for line in sweep_report.table(found).splitlines()]
    assert [line for line in said if line.startswith(("chance", "recalls"))] == [
        "chance",
        *(f"recalls {delay}, task.name = toy, task.delay = {delay}, task.unit = {UNIT}" for delay in (2, 4)),
    ]
    assert shared(found) == {"chance": 4.0}
    other = [row for row in found.rows if row.point.values["task.unit"] == "nats"]
    assert all("in 'nats', cannot be ranked with those of others, in '½" in row.refused for row in other)
    assert sweep_report.best(found.rows).point.values["task.unit"] == UNIT


def test_long_labels_are_cut_in_names_of_files(here, quick):
    tables = tomllib.loads(CONFIG)
    tables["estimator"] = [tables["estimator"][1] | {"label": letter * 300} for letter in "ab"]
    found = train_grid(grid(parse(tables), axes_of(["optimizer.learning_rate=1e-4,1e-3"])))
    assert [*sweep_report.best_configs(found, "")] == [f"best_{letter * 100}.toml" for letter in "ab"]


def test_interruption_keeps_the_programs_that_are_done(here, capsys, quick):
    over = ["--over", "optimizer.learning_rate=1e-4,1e-3", "--over", "run.seed=0,1"]
    quick.errors[2] = KeyboardInterrupt()
    assert main(["sweep", "small.toml", *over]) == 130
    out, err = capsys.readouterr()
    assert err == "online-grads: interrupted after 2 of 8 points\n"
    assert "interrupted; 2 points in 1 program" in out
    found = json.loads((here / "runs" / "small-sweep" / "sweep.json").read_text())
    assert found["interrupted"] is True
    assert [point["values"]["run.seed"] for point in found["points"]] == [0, 0]
    assert (here / "runs" / "small-sweep" / "sweep.png").exists()
    # a termination, before anything is done
    quick.calls, quick.errors[1] = 0, None
    quick.errors[1] = KeyboardInterrupt()
    quick.errors[1].signal = signal.SIGTERM
    assert main(["sweep", "small.toml", *over, "--out", "none"]) == 143
    assert not (here / "none").exists()


def test_what_a_device_has_no_memory_for_is_refused_and_the_others_go_on(quick):
    quick.errors[1] = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of\nmemory")
    found = sweep("optimizer.learning_rate=1e-4,1e-3")
    assert [row.refused for row in found.rows if row.point.label == "tbptt(10)"] == [
        "RESOURCE_EXHAUSTED: out of memory"
    ] * 2
    assert all(row.score is not None for row in found.rows if row.point.label == "ES, 2")
    assert "refused: tbptt(10), 2 points: RESOURCE_EXHAUSTED: out of memory" in sweep_report.table(found)


def test_data_that_are_not_finite_are_status_1(here, capsys, quick):
    quick.failure = "tbptt: xs is not finite at step 3 of the stream"
    assert main(["sweep", "small.toml", "--over", "optimizer.learning_rate=1e-4,1e-3"]) == 1
    assert capsys.readouterr().err == f"online-grads: {quick.failure}\n"


def test_points_that_are_all_refused_are_a_mistake(here, capsys, quick):
    with pytest.raises(ConfigError, match=r"every point is refused; the first: here\.toml: estimator\.0"):
        sweep("optimizer.learning_rate=1e-4", "estimator.0.sigma=-1.0,-2.0", only=["ES, 2"])
    assert main(["sweep", "small.toml", "--over", "estimator.sgma=1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "unknown key; did you mean 'sigma'?" in err
    assert not (here / "runs").exists()
