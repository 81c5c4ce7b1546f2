"""Configs: defaults, overrides, and every mistake one line that says where and what was possible."""

import copy
import dataclasses
import inspect
import math
import pickle
import re
from pathlib import Path
from typing import Any, Literal

import pytest

from online_grads import ESTIMATORS, config
from online_grads.cells import CELLS
from online_grads.config import ConfigError, load, parse
from online_grads.optimizers import OptimizerConfig
from online_grads.signatures import expected, fits, options
from online_grads.tables import UnknownKey, lay

CONFIGS = Path(__file__).parents[1] / "configs"
TABLES = {
    "task": {"name": "add", "t1": 3},
    "model": {"cell": "vanilla_rnn", "hidden": [8, 4], "leak": 0.5},
    "run": {"steps": 120, "seeds": 3},
    "optimizer": {"name": "adam", "learning_rate": [0.1, 1], "b1": 0.8},
    "estimator": [
        {"name": "tbptt", "window": 10},
        {"name": "rtrl", "steps": 60, "seeds": 1, "optimizer": {"learning_rate": 0.5}},
        {"name": "uoro", "label": "noisy", "updates": 7, "window": 3, "optimizer": {"name": "sgd"}},
    ],
}
TABLES["estimator"][2]["optimizer"]["learning_rate"] = 0.01
MOST = 2**31 - 1


def changed(path, value):
    """The good tables with one value set, or taken out if it is None."""
    tables = copy.deepcopy(TABLES)
    *sections, key = path.split(".")
    table: Any = tables
    for section in sections:
        table = table[int(section) if isinstance(table, list) else section]
    if value is None:
        del table[key]
    else:
        table[key] = value
    return tables


def test_defaults_and_what_estimators_override():
    read = parse(TABLES)
    assert read.task == config.TaskConfig("add", {"t1": 3})
    assert read.model == config.ModelConfig("vanilla_rnn", (8, 4), {"leak": 0.5})
    assert read.run == config.RunConfig(
        seeds=3, seed=0, precision="float32", axis="steps", chunk=4096, only=(), fast=False
    )
    tbptt, rtrl, uoro = read.estimators
    assert (tbptt.label, tbptt.steps, tbptt.seeds) == ("tbptt(10)", 120, 3)
    assert tbptt.optimizer == OptimizerConfig("adam", (0.1, 1.0), {"b1": 0.8})
    assert (rtrl.label, rtrl.steps, rtrl.seeds, rtrl.window) == ("rtrl", 60, 1, 1)
    assert rtrl.optimizer == OptimizerConfig("adam", (0.5,), {"b1": 0.8})
    assert (uoro.label, uoro.steps) == ("noisy", 21)
    assert uoro.optimizer == OptimizerConfig("sgd", (0.01,), {})


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("modell", {}, "unknown section [modell]; did you mean 'model'? possible: compare, estimator, "),
        ("task.name", "ad", "task.name: unknown name 'ad'; did you mean 'add'? possible: add, anbn, "),
        ("task.name", None, "task.name: missing; possible: add, anbn, "),
        ("task.t3", 1, "task.t3: unknown key; possible: name, repeat, t1, t2"),
        ("task.t1", 1.5, "task.t1: expected an integer, got 1.5"),
        ("task", "add", "task: expected a table, got 'add'"),
        ("model.cell", "gruu", "model.cell: unknown name 'gruu'; did you mean 'gru'? possible: alif, "),
        ("model.leek", 1, "model.leek: unknown key; did you mean 'leak'? possible: cell, hidden, leak"),
        ("model.leak", "half", "model.leak: expected a number, got 'half'"),
        ("model.hidden", [8, 0], "model.hidden: expected sizes of at least 1, got [8, 0]"),
        ("model.hidden", "8", "model.hidden: expected an integer or a list of integers, got '8'"),
        ("run.updates", 12, "run.updates: steps are given too; give one of them"),
        ("run.steps", 1e5, "run.steps: expected an integer, got 100000.0"),
        ("run.steps", 0, "run.steps: must be at least 1, got 0"),
        ("run.steps", 125, "estimator.0.window: 10 does not divide 125 steps; it divides 120 and 130"),
        ("run.steps", None, "estimator.0.steps: missing; give steps or updates, here or in [run]"),
        ("run.seeds", True, "run.seeds: expected an integer, got True"),
        (
            "run.stesp",
            1,
            "run.stesp: unknown key; did you mean 'steps'? possible: axis, chunk, fast, only, precision, ",
        ),
        ("run.precision", "float46", "run.precision: unknown name 'float46'; did you mean 'float64'? "),
        ("run.axis", "time", "run.axis: unknown name 'time'; possible: steps, updates"),
        ("optimizer.name", "adamm", "optimizer.name: unknown name 'adamm'; did you mean 'adam'? possible: "),
        ("optimizer.b3", 0.9, "optimizer.b3: unknown key; possible: b1, b2, eps, "),
        ("optimizer.b1", "x", "optimizer.b1: expected "),
        ("optimizer.learning_rate", None, "learning_rate: missing; expected a number or a list of numbers"),
        ("optimizer.learning_rate", [0.1, "x"], "expected a number or a list of numbers, got [0.1, 'x']"),
        ("optimizer.learning_rate", [], "optimizer.learning_rate: expected finite numbers ≥ 0, got []"),
        ("optimizer.learning_rate", -1, "optimizer.learning_rate: expected finite numbers ≥ 0, got -1"),
        ("optimizer.learning_rate", math.nan, "learning_rate: expected finite numbers ≥ 0, got nan"),
        ("optimizer.learning_rate", [1.0, 2, 1], "optimizer.learning_rate: 1 is there twice"),
        ("run.only", ["rtrl", "rtrl"], "run.only: 'rtrl' is there twice"),
        ("run.only", [1], "run.only: expected a list of strings, got [1]"),
        ("run.fast", True, "run.fast: there is no [fast] section"),
        ("run.seed", -1, "run.seed: must be at least 0, got -1"),
        ("task", {"name": "trace_conditioning", "isi": [7]}, "isi: expected a list of 2 integers, got [7]"),
        ("estimator", [], "estimator: expected one [[estimator]] table or more"),
        ("estimator", {"name": "rtrl"}, "estimator: expected one [[estimator]] table or more"),
        (
            "estimator.1.name",
            "rtlr",
            "estimator.1.name: unknown name 'rtlr'; did you mean 'rtrl'? possible: ",
        ),
        ("estimator.0.histroy", 1, "estimator.0.histroy: unknown key; did you mean 'history'? possible: "),
        ("estimator.0.history", "x", "estimator.0.history: expected an integer, got 'x'"),
        ("estimator.0.window", 0, "estimator.0.window: must be at least 1, got 0"),
        (
            "estimator.1.label",
            "tbptt(10)",
            "estimator.1.label: there is a 'tbptt(10)' already; give this one",
        ),
        ("estimator.1.optimizer.lr", 1, "estimator.1.optimizer.lr: unknown key; possible: b1, "),
        ("estimator.1.optimizer", 0.1, "estimator.1.optimizer: expected "),
    ],
)
def test_a_mistake_is_one_line(path, value, message):
    with pytest.raises(ConfigError, match="^here.toml: .*" + re.escape(message)) as caught:
        parse(changed(path, value), source="here.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        *[
            (path, value, f"{path}: must be at most {MOST}, got {value}")
            for path, value in [
                ("run.seeds", 99999999999999999999999),
                ("run.seed", MOST + 1),
                ("run.chunk", MOST + 1),
                ("run.steps", 10**400),
                ("task.t1", MOST + 1),
                ("optimizer.b1", MOST + 1),
                ("estimator.0.window", MOST + 1),
            ]
        ],
        *[
            ("compare", {key: 10**12}, f"compare.{key}: must be at most {MOST}, got {10**12}")
            for key in ("streams", "warmup", "steps", "keys", "lags")
        ],
        ("compare", {"at": [0, MOST + 1]}, f"compare.at: must be at most {MOST}, got {MOST + 1}"),
        ("model.hidden", [4, MOST + 1], f"model.hidden: must be at most {MOST}, got {MOST + 1}"),
        ("estimator.0.history", -MOST - 1, f"estimator.0.history: must be at least {-MOST}, got {-MOST - 1}"),
        (
            "compare",
            {"streams": 2**20, "warmup": 2**11, "steps": 1},
            f"compare.streams: streams × (warmup + steps) must be at most {MOST}, got {2**31 + 2**20}",
        ),
        ("run.seed", MOST - 1, f"run.seed: the last seed must be at most {MOST}, got {MOST + 1}"),
        (
            "estimator.2.updates",
            MOST // 3 + 1,
            f"estimator.2.window: updates × window must be at most {MOST}, got {MOST // 3 * 3 + 3}",
        ),
    ],
)
def test_integers_beyond_int32(path, value, message):
    with pytest.raises(ConfigError, match="^here.toml: " + re.escape(message) + "$"):
        parse(changed(path, value), source="here.toml")


def test_integers_up_to_int32():
    read = parse(changed("run.seed", MOST - 2))  # three seeds
    assert read.run.seed == MOST - 2
    with pytest.raises(ConfigError, match=rf"estimator.1.seeds: the last seed must be at most {MOST}, got"):
        parse(changed("run.seed", MOST - 2), ["estimator.1.seeds=4"])
    read = parse(changed("compare", {"streams": 1, "warmup": MOST - 1, "steps": 1, "lags": 0}))
    assert read.compare.warmup == MOST - 1


def test_hints_where_there_is_nothing_to_hint_at():
    with pytest.raises(ConfigError, match=r"window: 1000000 does not divide 120 steps$"):
        parse(changed("estimator.0.window", 1000000))
    tables = changed("model", {"cell": "gru", "hidden": 4})
    assert not options(CELLS["gru"])
    tables["estimator"][0]["model"] = {"zzz": 1}
    with pytest.raises(ConfigError, match=r"estimator.0.model.zzz: unknown key; none is possible$"):
        parse(tables)


def test_files_that_cannot_be_read(tmp_path):
    file = tmp_path / "a.toml"
    with pytest.raises(ConfigError, match=r"a\.toml: No such file"):
        load(file)
    file.write_text("[run\nsteps = 1")
    with pytest.raises(ConfigError, match=r"a\.toml: Expected .* line 1"):
        load(file)
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"a\.toml: .*utf-8"):
        load(file)


def test_overrides():
    read = load(
        CONFIGS / "add.toml",
        [
            "run.updates=30",
            "run.precision = float64",
            "model.hidden=[4, 4]",
            "estimator.window=3",
            "estimator.1.label='other'",
            "estimator.0.optimizer.learning_rate=0.5",
        ],
    )
    assert read.run.precision == "float64"
    assert read.run.axis == "updates"
    assert read.model.hidden == (4, 4)
    assert {(row.window, row.steps) for row in read.estimators} == {(3, 90)}
    assert read.estimators[1].label == "other"
    assert [row.optimizer.learning_rate for row in read.estimators[:2]] == [(0.5,), (1e-4,)]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("run.steps", "--set run.steps: expected section.key=value"),
        ("steps=3", "--set steps=3: expected section.key=value"),
        ("run.steps=[1", "--set run.steps=[1: '[1' is not a TOML value"),
        ("run.steps.x=1", "--set run.steps.x=1: run.steps is not a table"),
        (
            "estimator.99.window=1",
            "--set estimator.99.window=1: the config has ",
        ),
        ("run.step=1", "add.toml: run.step: unknown key; did you mean 'steps'?"),
        ("ran.steps=1", "add.toml: unknown section [ran]; did you mean 'run'?"),
    ],
)
def test_overrides_that_cannot_be(item, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(CONFIGS / "add.toml", [item])


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_configs_that_ship(path):
    read = load(path)
    assert read.tables["task"]["name"] == read.task.name
    assert "Paper:" in (text := path.read_text()) or "Setting:" in text


def test_one_draw_shows_no_noise():
    message = "compare.keys: expected 2 or more, as some of the estimators are random, got 1"
    with pytest.raises(ConfigError, match=message):
        parse(changed("compare", {"keys": 1}))
    tables = changed("compare", {"keys": 1})
    tables["run"]["only"] = ["rtrl"]
    assert parse(tables).compare.keys == 1


def test_some_of_the_estimators():
    tables = changed("run.only", ["noisy", "rtrl"])
    chosen = parse(tables).estimators
    # in the file's order, and blamed by their places in the file
    assert [(row.label, row.index) for row in chosen] == [("rtrl", 1), ("noisy", 2)]
    assert parse(tables).compare.by == "rtrl"
    with pytest.raises(
        ConfigError, match=r"run.only: unknown label 'noise'; did you mean 'noisy'\? possible: "
    ):
        parse(changed("run.only", ["noise"]))


def test_the_schema_names_every_key():
    keys = {field.name for field in dataclasses.fields(config.RunConfig)}
    keys |= {field.name for field in dataclasses.fields(config.EstimatorConfig)} - {"options", "index"}
    keys |= {"cell", "hidden", "learning_rate", "[task]", "[model]", "[run]", "[optimizer]", "[[estimator]]"}
    assert [key for key in keys if key not in config.SCHEMA] == []
    for name, value in (("chunk", 4096), ("seeds", 1), ("seed", 0), ("window", 1)):
        assert re.search(rf"^  {name} = {value} ", config.SCHEMA, re.MULTILINE)
    assert parse(changed("estimator.0.window", None)).estimators[0].window == 1


def test_options_are_checked_against_signatures():
    def make(model, *, order: int, rule: Literal["a", "b"] = "a", extra=None, act: Any = None, **more): ...

    assert list(options(make)) == ["order", "rule", "extra", "act"]
    made = options(ESTIMATORS["dni"].constructor)
    assert {"copy_every", "jacobian", "squash"} <= set(made)
    # what no TOML can say
    assert not {"features", "synthesiser", "inner_optimizer"} & set(made)
    assert fits("b", Literal["a", "b"])
    assert not fits("c", Literal["a", "b"])
    assert expected(Literal["a", "b"]) == "one of 'a', 'b'"
    assert fits(object(), inspect.Parameter.empty)
    assert not fits((1, "x"), tuple[int, ...])
    assert expected(float | None) == "a number"


def test_feedback_and_an_estimator_s_own_optimizer():
    inner = {"name": "sgd", "learning_rate": 5.0, "momentum": 0.5}
    rows = parse(
        changed(
            "estimator",
            [
                {"name": "rflo", "feedback": "random"},
                {"name": "kernl", "inner_optimizer": inner},
                {"name": "dni", "jacobian": "learned", "jacobian_optimizer": inner},
            ],
        )
    ).estimators
    assert [row.feedback for row in rows] == ["random", "symmetric", "symmetric"]
    assert rows[0].inner_optimizer is None
    assert rows[1].inner_optimizer == OptimizerConfig("sgd", (5.0,), {"momentum": 0.5})
    assert rows[2].inner_optimizer is None
    assert rows[2].jacobian_optimizer == rows[1].inner_optimizer


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"name": "rflo", "feedback": "rando"},
            "estimator.0.feedback: unknown name 'rando'; did you mean 'random'?",
        ),
        ({"name": "rtrl", "feedback": "random"}, "estimator.0.feedback: unknown key"),
        ({"name": "rflo", "inner_optimizer": {"name": "sgd"}}, "estimator.0.inner_optimizer: unknown key"),
        (
            {"name": "kernl", "inner_optimizer": {"name": "sgd"}},
            "estimator.0.inner_optimizer.learning_rate: missing",
        ),
        (
            {"name": "kernl", "inner_optimizer": {"name": "sgd", "learning_rate": [1.0, 2.0]}},
            "estimator.0.inner_optimizer.learning_rate: expected one number, got a list",
        ),
    ],
)
def test_mistakes_in_them(row, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse(changed("estimator", [row]))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("compare", {"at": []}, "compare.at: expected steps ≥ 0 in ascending order, got []"),
        ("compare", {"at": [5, 5]}, "compare.at: expected steps ≥ 0 in ascending order, got [5, 5]"),
        ("compare", {"at": [5, 0]}, "compare.at: expected steps ≥ 0 in ascending order, got [5, 0]"),
        ("compare", {"at": [-1, 0]}, "compare.at: expected steps ≥ 0 in ascending order, got [-1, 0]"),
        ("compare", {"at": 5}, "compare.at: expected a list of integers, got 5"),
        ("compare", {"at": [1.5]}, "compare.at: expected a list of integers, got [1.5]"),
        ("compare", {"lags": 21}, "compare.lags: expected 0 to 20, the steps, got 21"),
        ("compare", {"lags": -1}, "compare.lags: expected 0 to 20, the steps, got -1"),
        ("compare", {"warmup": -1}, "compare.warmup: must be at least 0, got -1"),
        ("compare", {"streams": 0}, "compare.streams: must be at least 1, got 0"),
        ("compare", {"keys": 1.5}, "compare.keys: expected an integer, got 1.5"),
        ("compare", {"by": "uoro"}, "compare.by: unknown name 'uoro'; possible: noisy, rtrl, tbptt(10)"),
        ("compare", {"stream": 1}, "compare.stream: unknown key; did you mean 'streams'? possible: at, by, "),
        ("compare", 3, "compare: expected a table, got 3"),
        ("estimator.0.frozen", "cell", "estimator.0.frozen: expected a list of strings, got 'cell'"),
        ("estimator.0.frozen", ["cell", 1], "estimator.0.frozen: expected a list of strings, got"),
        ("estimator.0.frozen", ["cell", "cell"], "estimator.0.frozen: 'cell' is there twice"),
        ("estimator.0.model", {"leek": 1}, "estimator.0.model.leek: unknown key; did you mean 'leak'?"),
        ("estimator.0.model", {"leak": "x"}, "estimator.0.model.leak: expected a number, got 'x'"),
        ("estimator.0.model", {"hidden": 3}, "estimator.0.model.hidden: unknown key"),
        ("estimator.0.model", 3, "estimator.0.model: expected a table, got 3"),
        ("optimizer.slowdown", -0.5, "optimizer.slowdown: expected a finite number ≥ 0, got -0.5"),
        ("optimizer.slowdown", math.inf, "optimizer.slowdown: expected a finite number ≥ 0, got inf"),
        ("run.fast", 1, "run.fast: expected true or false, got 1"),
        ("run.fast", "true", "run.fast: expected true or false, got 'true'"),
    ],
)
def test_mistakes_in_the_newer_keys(path, value, message):
    with pytest.raises(ConfigError, match="^here.toml: " + re.escape(message)) as caught:
        parse(changed(path, value), source="here.toml")
    assert "\n" not in str(caught.value)


def test_a_mistake_survives_a_process_pool():
    with pytest.raises(UnknownKey) as raised:
        parse({"task": {"name": "add"}, "run": {"step": 4}})
    error = pickle.loads(pickle.dumps(raised.value))
    assert str(error).startswith("config: run.step: unknown key; did you mean 'steps'?")
    assert (error.key, error.possible) == ("step", raised.value.possible)


def test_what_is_compared_by_default_and_otherwise():
    found = parse(TABLES).compare
    assert found == config.CompareConfig("tbptt(10)", (0,), streams=8, keys=16, warmup=100, steps=20, lags=0)
    given = {"by": "noisy", "at": [0, 30], "streams": 2, "keys": 3, "warmup": 0, "steps": 5, "lags": 5}
    assert parse(changed("compare", given)).compare == config.CompareConfig(**given | {"at": (0, 30)})
    for key in (field.name for field in dataclasses.fields(config.CompareConfig)):
        assert re.search(rf"^  {key}( = \S+)? {{2,}}\S", config.SCHEMA, re.MULTILINE), key


def test_variants_and_what_is_frozen():
    tables = changed("estimator.0.model", {"leak": 0.25})
    tables["estimator"][1]["frozen"] = ["cell.W_rec", "readout"]
    varied, frozen, plain = parse(tables).estimators
    assert varied.model == {"leak": 0.25}
    assert frozen.frozen == ("cell.W_rec", "readout")
    assert (plain.model, plain.frozen) == ({}, ())
    del tables["model"]
    with pytest.raises(ConfigError, match=r"estimator.0.model: there is no \[model\] to lay it over"):
        parse(tables)
    assert parse(changed("optimizer.slowdown", 0.5)).estimators[0].optimizer.slowdown == 0.5


FAST = {
    "run": {"updates": 2, "seeds": 1},
    "model": {"hidden": 2},
    "estimator": {"window": 3, "optimizer": {"learning_rate": 0.25}},
    "compare": {"at": [0]},
}


def test_the_fast_variant_is_laid_over_if_asked_for():
    tables = {**copy.deepcopy(TABLES), "fast": FAST}
    before = copy.deepcopy(tables)
    plain = parse(tables)
    assert plain.estimators == parse(TABLES).estimators
    assert plain.tables == TABLES
    fast = parse(tables, ["run.fast=true"])
    assert tables == before
    assert fast.run.seeds == 1
    assert fast.run.axis == "updates"  # and steps are dropped
    assert fast.model.hidden == (2,)
    assert fast.model.options == {"leak": 0.5}
    tbptt, rtrl, uoro = fast.estimators
    assert (tbptt.window, tbptt.steps, tbptt.label) == (3, 6, "tbptt(3)")
    assert {row.optimizer.learning_rate for row in fast.estimators} == {(0.25,)}
    assert [row.optimizer.name for row in fast.estimators] == ["adam", "adam", "sgd"]
    # what an estimator says itself goes before [run]
    assert (rtrl.steps, uoro.steps) == (60, 21)
    # written into [run], or over the file by an override
    asked = copy.deepcopy(tables)
    asked["run"]["fast"] = True
    assert parse(asked).estimators == fast.estimators
    assert parse(asked, ["run.fast=false"]).estimators == plain.estimators


def test_overrides_win_over_the_fast_variant():
    tables = {**copy.deepcopy(TABLES), "fast": FAST}
    # in whatever order
    for given in (["run.fast=true", "run.updates=5"], ["run.updates=5", "run.fast=true"]):
        read = parse(tables, [*given, "estimator.0.window=2", "model.hidden=7"])
        assert [row.window for row in read.estimators] == [2, 3, 3]
        assert read.estimators[0].steps == 10
        assert read.model.hidden == (7,)
        assert read.run.seeds == 1


@pytest.mark.parametrize(
    ("fast", "message"),
    [
        ({"run": {"step": 3}}, "run.step: unknown key; did you mean 'steps'?"),
        ({"ran": {"steps": 3}}, "unknown section [ran]; did you mean 'run'?"),
        ({"estimator": {"histroy": 3}}, "estimator.0.histroy: unknown key; did you mean"),
        ({"estimator": {"0": {"history": "x"}}}, "estimator.0.history: expected an integer, got 'x'"),
        ({"estimator": {"9": {"history": 1}}}, "fast.estimator: the config has 3 estimators, counted from 0"),
        ({"estimator": [{"history": 1}]}, "fast.estimator: expected a table, got "),
        ({"run": 3}, "fast.run: expected a table, got 3"),
        ({"steps": 3}, "fast.steps: expected a table, got 3"),
        ({"run": {"steps": {"a": 1}}}, "fast.run: run.steps is not a table"),
        (3, "fast: expected a table, got 3"),
    ],
)
def test_mistakes_in_the_fast_variant(fast, message):
    with pytest.raises(ConfigError, match="^here.toml: " + re.escape(message)) as caught:
        parse({**copy.deepcopy(TABLES), "fast": fast}, ["run.fast=true"], source="here.toml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fast", [3, {"run": 3}, {"ran": {"steps": 3}}, {"run": {"step": 3}}])
def test_a_wrong_fast_variant_that_is_not_asked_for_changes_nothing(fast):
    assert parse({**copy.deepcopy(TABLES), "fast": fast}).estimators == parse(TABLES).estimators


def test_laying_tables_over_others():
    tables = {"a": {"x": 1, "deep": {"y": 1, "z": [1, 2]}}, "estimator": [{"name": "p"}, {"name": "q"}]}
    over = {
        "a": {"deep": {"z": [3]}, "new": {"w": 1}},
        "b": {"v": True},
        "estimator": {"1": {"k": 2}, "l": 3},
    }
    lay(tables, over, "fast")
    assert tables == {
        "a": {"x": 1, "deep": {"y": 1, "z": [3]}, "new": {"w": 1}},
        "b": {"v": True},
        "estimator": [{"name": "p", "l": 3}, {"name": "q", "k": 2, "l": 3}],
    }
    before = copy.deepcopy(tables)
    lay(tables, {"a": {}, "estimator": {}}, "fast")
    assert tables == before
