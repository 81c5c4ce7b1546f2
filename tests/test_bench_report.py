"""The table, the JSON and the figure of a bench, from rows that are given."""

import json

import pytest

from online_grads import ESTIMATORS
from online_grads.bench import Cost
from online_grads.bench_report import curves, fitting, header, human, slopes, summary, table, write

FORMULA = ESTIMATORS["rtrl"].memory
ROWS = [
    Cost("gru", 32, "rtrl", "J·M", 4096, 2e-4, 0.5, 1e-4),
    Cost("gru", 32, "rflo", "stream", reason="it refuses"),
    Cost("gru", 64, "rtrl", "J·M", 40960, 3.2e-3, 0.75, 1e-3),
    Cost("gru", 64, "rflo", "stream", 2**30, reason="does not fit"),
    Cost("lstm", 32, "rtrl", "J·M", 4096, 2e-6, 0.5, 1e-6),
    Cost("gru", 128, "rtrl", "J·M", 409600, 5.12e-2, 0.75, 1e-2),
]


def test_table():
    results, growth = table(ROWS).split("\n\n")
    lines = results.splitlines()
    assert lines[0].split() == (
        [
            "cell",
            "n",
            "estimator",
            "µs/step",
            "compile",
            "s",
            "state",
            "formula",
            "bound",
            "bound",
            "µs",
            "ratio",
        ]
    )
    assert lines[1].split() == [
        "gru",
        "32",
        "rtrl",
        "200",
        "0.5",
        "4",
        "KiB",
        *FORMULA.split(),
        "J·M",
        "100",
        "2",
    ]
    assert lines[2].split() == ["gru", "32", "rflo", "-", "-", "-", "p", "stream", "-", "-", "it", "refuses"]
    assert "3,200" in lines[3]
    assert "1 GiB" in lines[4]
    assert lines[4].endswith("-  does not fit")
    assert [line.split() for line in growth.splitlines()[1:]] == [["gru", "rtrl", "4.00"]]
    assert "\n\n" not in table(ROWS[:2])


def test_slopes_and_curves():
    assert slopes(ROWS) == {("gru", "rtrl"): pytest.approx(4)}
    found = curves(ROWS)
    assert list(found) == ["gru", "lstm"]
    for cell in found.values():
        assert [curve.label for curve in cell] == ["rtrl", "rflo"]
    assert found["gru"][0].n.tolist() == [32, 64, 128]
    assert found["gru"][0].cost.tolist() == pytest.approx([200, 3200, 51200])
    assert found["gru"][1].n.size == 0
    assert found["lstm"][0].slope is None


def test_summary_and_files(tmp_path):
    write(ROWS, tmp_path, window=2, repeats=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bench.json", "bench.pdf", "bench.png"]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    read = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert read == summary(ROWS, window=2, repeats=3)
    assert (read["window"], read["repeats"], read["dtype"]) == (2, 3, "float32")
    assert (
        read["rows"][0] | {"ratio": 2.0, "formula": FORMULA, "seconds": 2e-4, "reason": None}
        == read["rows"][0]
    )
    assert read["rows"][1]["seconds"] is None
    assert read["slopes"] == [{"cell": "gru", "estimator": "rtrl", "slope": pytest.approx(4)}]


def test_header_says_where():
    assert "float32" in header(window=4, repeats=7)
    assert header(window=4, repeats=7).endswith("k = 4, median of 7")


def test_fitting_names_the_size_or_the_reason():
    lines = fitting(["lstm"], ["tbptt", "rflo"], 2.0**30).splitlines()
    assert lines[0].split() == ["cell", "estimator", "n", "bytes", "state's", "formula"]
    assert lines[1].split()[:3] == ["lstm", "tbptt", "8,186"]
    assert "rflo keeps one trace per weight" in lines[2]
    assert fitting(["lstm"], ["tbptt"], 1.0).splitlines()[1].split()[:4] == ["lstm", "tbptt", "0", "-"]


def test_human():
    assert [human(size) for size in (0, 1023, 1024, 1536, 2**30 - 1, 2**70)] == [
        *("0 B", "1023 B", "1 KiB", "1.5 KiB", "1 GiB", "1.049e+06 PiB")
    ]
