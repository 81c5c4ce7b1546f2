"""The grid of a sweep: its grammar, which estimators a key goes to, what is refused before anything runs."""

import math

import pytest

from online_grads.config import parse
from online_grads.grid import Axis, axes_of, axis_of, printed
from online_grads.grid_points import grid
from online_grads.tables import ConfigError


def config(*estimators, **sections):
    tables = {
        "task": {"name": "add"},
        "model": {"cell": "vanilla_rnn", "hidden": 4},
        "run": {"steps": 20},
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "estimator": [{"name": name} if isinstance(name, str) else name for name in estimators],
    }
    return parse({**tables, **sections}, source="here.toml")


def points(made, *over):
    return grid(made, axes_of(over)).points


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("optimizer.learning_rate=1e-5..1e-2:4:log", (1e-5, 1e-4, 1e-3, 1e-2)),
        ("model.leak=0..1:5:lin", (0.0, 0.25, 0.5, 0.75, 1.0)),
        ("model.leak=-0.5..0.5:3:lin", (-0.5, 0.0, 0.5)),
        ("run.steps=10..30:3:lin", (10, 20, 30)),
        ("run.steps=1..4:3:lin", (1.0, 2.5, 4.0)),
        ("model.hidden=1..16:5:log", (1, 2, 4, 8, 16)),
        ("run.steps=7..7:1:lin", (7,)),
        ("run.steps = 5", (5,)),
        ("estimator.rank=1,2,4", (1, 2, 4)),
        ("optimizer.name=sgd,adam", ("sgd", "adam")),
        ("optimizer.name='a,b', \"c\"", ("a,b", "c")),
        ("model.hidden=[4,8],[16]", ([4, 8], [16])),
        ("optimizer.nesterov=true,false", (True, False)),
        ("task.path=../a.txt,../b.txt", ("../a.txt", "../b.txt")),
    ],
)
def test_values(text, values):
    axis = axis_of(text)
    assert axis.values == values
    assert [*map(type, axis.values)] == [*map(type, values)]
    assert axis.log is text.endswith("log")


def test_a_range_is_exact_where_its_print_is_not():
    values = axis_of("optimizer.learning_rate=1e-3..1e-1:4:log").values
    assert (values[0], values[-1]) == (1e-3, 1e-1)
    assert values[1] == pytest.approx(10 ** (-7 / 3), rel=1e-14)
    assert printed(values) == ["0.001", "0.00464", "0.0215", "0.1"]
    assert printed([0.1, math.nextafter(0.1, 1)]) == ["0.10000000000000001", "0.10000000000000002"]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["optimizer.learning_rat=1,2"], "unknown key; did you mean 'learning_rate'?"),
        (["estimator.ordr=1,2"], "--over estimator.ordr: unknown key; did you mean 'order'?"),
        (["estimator.0.order=1,2"], "--over estimator.0.order: unknown key"),
        (["estimator.2.order=1,2"], "2 estimators to train, counted 0, 1"),
        (["optmizer.name=sgd"], "unknown section [optmizer]; did you mean 'optimizer'?"),
        (["learning_rate=1,2"], "expected section.key=values"),
        (["optimizer.learning_rate"], "expected section.key=values"),
        (["optimizer.learning_rate=1e-2..1e-3:4:log"], "the range is empty, 1e-2 is above 1e-3"),
        (["optimizer.learning_rate=0..1:4:log"], "log needs numbers above 0, got 0"),
        (["optimizer.learning_rate=0.1..1:0:lin"], "expected 1 value or more, got 0"),
        (["optimizer.learning_rate=0.1..1:1:lin"], "1 value cannot have the ends 0.1 and 1"),
        (["optimizer.learning_rate=1..1:2:lin"], "2 values cannot have the ends 1 and 1"),
        (["optimizer.learning_rate=0.1..1:4"], "expected a..b:n:log or a..b:n:lin"),
        (["optimizer.learning_rate=0.1..1"], "expected a..b:n:log or a..b:n:lin"),
        (["optimizer.learning_rate=0.1..x:4:lin"], "expected a..b:n:log or a..b:n:lin"),
        (["optimizer.learning_rate=1,"], "'' is not a TOML value"),
        (["optimizer.learning_rate=0.1,0.10"], "0.1 is there twice"),
        (["optimizer.learning_rate=1,2", "optimizer.learning_rate=3"], "swept already"),
        (
            ["optimizer.learning_rate=1,2", "estimator.optimizer.learning_rate=3"],
            "sets the same value already",
        ),
        (["run.steps=10,20", "run.updates=3"], "run.updates: run.steps sets the same value already"),
        (["optimizer.learning_rate=[0.1,0.2],[0.3]"], "one number at each point"),
        (["optimizer.learning_rate=0.1,-1"], "expected finite numbers ≥ 0, got -1"),
        (["model.hidden=1..4:3:lin"], "expected an integer or a list of integers, got 1.0"),
        (["estimator.window=2,3"], "estimator.0.window: 3 does not divide 20 steps"),
        (["estimator.1.window=2,3"], "estimator.1.window: 3 does not divide 20 steps"),
        (["run.only=a,b"], "run.only changes nothing about a training"),
        (["compare.keys=2,3"], "compare.keys changes nothing about a training"),
        (["optimizer.learning_rate=0.1..1:20000:lin"], "20000 points are more than 10000"),
        (["optimizer.learning_rate=0.1..1:99:lin", "model.leak=0.1..1:99:lin"], "19602 points are more than"),
    ],
)
def test_what_is_refused(over, message):
    with pytest.raises(ConfigError) as caught:
        points(config("rtrl", "snap"), *over)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_goes_to_the_estimators_that_take_it():
    made = points(config("rtrl", "snap", {"name": "snap", "label": "other"}), "estimator.order=1,2")
    assert [(point.label, point.values) for point in made] == [
        ("rtrl", {}),
        *(("snap", {"estimator.order": order}) for order in (1, 2)),
        *(("other", {"estimator.order": order}) for order in (1, 2)),
    ]
    made = points(config("snap", {"name": "snap", "label": "other"}), "estimator.1.order=1,2")
    assert [point.config.estimators[0].options for point in made] == [{}, {"order": 1}, {"order": 2}]
    assert [point.config.estimators[0].index for point in made] == [0, 1, 1]
    # another optimizer takes no momentum
    adam = {"name": "snap", "optimizer": {"name": "adam", "learning_rate": 1.0}}
    made = points(config("rtrl", adam), "optimizer.momentum=0.0,0.9")
    assert [(point.label, *point.values.values()) for point in made] == [
        ("rtrl", 0.0),
        ("rtrl", 0.9),
        ("snap",),
    ]


def test_a_swept_value_wins_over_an_estimators_own():
    own = {"optimizer": {"learning_rate": 5.0}, "updates": 2, "seeds": 3, "model": {"leak": 0.9}}
    over = ["optimizer.learning_rate=0.2", "run.steps=40", "run.seeds=4", "model.leak=0.3"]
    for point in points(config("rtrl", {"name": "snap", **own}), *over):
        (chosen,) = point.config.estimators
        assert chosen.optimizer.learning_rate == (0.2,)
        assert (chosen.steps, chosen.seeds) == (40, 4)
        assert {**point.config.model.options, **chosen.model} == {"leak": 0.3}
    (point,) = points(config({"name": "snap", **own}), "run.seed=1")
    assert (point.config.estimators[0].steps, point.config.estimators[0].seeds) == (2, 3)


def test_learning_rates_of_a_config_are_swept_unless_an_axis_replaces_them():
    rates = config("rtrl", {"name": "snap", "optimizer": {"learning_rate": [0.1, 0.2]}})
    made = grid(rates, axes_of(["run.seed=0,1"]))
    assert made.axes == (Axis("run.seed", (0, 1)), Axis("optimizer.learning_rate", (0.1, 0.2)))
    assert [len(point.values) for point in made.points] == [1, 1, 2, 2, 2, 2]
    made = grid(rates, axes_of(["optimizer.learning_rate=0.3"]))
    assert [point.values for point in made.points] == [{"optimizer.learning_rate": 0.3}] * 2


def test_a_key_that_a_name_rules_out_is_left_out_there():
    made = points(config("rtrl"), "optimizer.momentum=0.5,0.9", "optimizer.name=sgd,adam")
    assert [(*point.values.values(), point.refused) for point in made] == [
        ("sgd", 0.5, None),
        ("sgd", 0.9, None),
        ("adam", None),
    ]


def test_points_that_other_values_rule_out_are_refused_alone():
    made = points(config("rtrl"), "run.steps=20,30", "estimator.window=2,4")
    assert [point.refused is None for point in made] == [True, True, True, False]
    assert "estimator.0.window: 4 does not divide 30 steps" in made[-1].refused


def test_a_window_that_is_swept_is_no_part_of_the_label():
    assert {p.label for p in points(config({"name": "tbptt", "window": 2}), "estimator.window=4,5")} == {
        "tbptt"
    }
    assert {p.label for p in points(config({"name": "tbptt", "window": 2}), "run.seed=4,5")} == {"tbptt(2)"}


def test_the_tables_of_a_point_are_a_config_of_their_own():
    made = config("rtrl", "snap", run={"steps": 20, "only": ["snap"]}, compare={"by": "snap"})
    (point,) = points(made, "model.hidden=[4,8]")
    assert point.tables["estimator"] == [{"name": "snap", "label": "snap"}]
    assert parse(point.tables).model.hidden == (4, 8)
