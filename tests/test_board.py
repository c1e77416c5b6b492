"""The picture of the board: panels at their cells, in the board's units, colours and legends; without Prometheus."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import yaml
from pages import HOUSE

KIT = HOUSE / "docs" / "deploy"
PANELS: list[dict[str, Any]] = json.loads((KIT / "grafana" / "board.json").read_text(encoding="utf-8"))["panels"]


@pytest.fixture(scope="module")
def board():
    """docs/board.py as a module."""
    sys.path.insert(0, str(HOUSE / "docs"))
    yield import_module("board")
    sys.path.remove(str(HOUSE / "docs"))


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (0.0, "s", "0 s"),
        (0.00025, "s", "250 µs"),
        (0.0125, "s", "12.5 ms"),
        (2.5, "s", "2.5 s"),
        (0.998, "percentunit", "99.8%"),
        (512.0, "bytes", "512 B"),
        (256 * 2**20, "bytes", "256 MiB"),
        (0.0, "bytes", "0 B"),
        (65.84, "reqps", "65.8 req/s"),
        (1500.0, "reqps", "1.5k req/s"),
        (0.0, "short", "0"),
    ],
)
def test_values_are_written_in_the_units_of_the_board(board, value, unit, expected):
    assert board.text(value, unit) == expected


def test_the_board_uses_no_other_units(board):
    for panel in PANELS:
        assert board.text(1.0, panel["fieldConfig"]["defaults"]["unit"])


def test_legends_and_queries_have_their_variables_replaced(board):
    assert board.legend("exit {{exit}} of {{ model }}", {"exit": "2", "model": "digits"}) == "exit 2 of digits"
    for panel in PANELS:
        for target in panel["targets"]:
            assert "$" not in board.query(target["expr"], 2)


def test_cells_fill_the_picture_from_its_top(board):
    assert board.cell({"x": 0, "y": 0, "w": 24, "h": 9}, rows=36) == (0.0, 0.75, 1.0, 0.25)
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in PANELS)
    shares = [board.cell(panel["gridPos"], rows) for panel in PANELS]
    assert sum(width * height for _, _, width, height in shares) == pytest.approx(1.0)


def test_single_values_have_the_colours_of_their_thresholds_which_are_those_of_the_alerts(board):
    on_time, shed = (next(each for each in PANELS if each["title"] == title) for title in ("On time", "Shed"))
    colours = [board.threshold(on_time["fieldConfig"]["defaults"], value) for value in (0.949, 0.951, 0.991)]
    assert colours == [board.COLOURS[name] for name in ("red", "orange", "green")]
    colours = [board.threshold(shed["fieldConfig"]["defaults"], value) for value in (0.009, 0.049, 0.051)]
    assert colours == [board.COLOURS[name] for name in ("green", "orange", "red")]
    (group,) = yaml.safe_load((KIT / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    limits = {rule["alert"]: float(rule["expr"].split(">")[-1]) for rule in group["rules"] if ">" in rule["expr"]}
    assert limits["AnytimeLCTLate"] == limits["AnytimeLCTShedding"] == 0.05


def test_a_panel_stacks_its_curves_and_leaves_gaps_where_values_are_missing(board):
    panel = next(each for each in PANELS if each["title"] == "Requests by outcome")
    stat = next(each for each in PANELS if each["type"] == "stat")
    times = np.array([0.0, 1.0, 2.0])
    curves = [board.Curve("answered", np.array([1.0, 2.0, np.nan])), board.Curve("shed", np.array([0.0, 3.0, 1.0]))]
    share = [board.Curve("on time", np.array([np.nan, 0.96, np.nan]))]
    figure = board.draw({"panels": [stat, panel]}, times, {stat["id"]: share, panel["id"]: curves})
    number, chart = figure.axes
    assert [each.get_text() for each in number.texts] == ["96%"]
    answered, shed = chart.lines
    assert answered.get_ydata().tolist() == [1.0, 2.0, 0.0] and shed.get_ydata().tolist() == [1.0, 5.0, 1.0]
    assert (answered.get_color(), shed.get_color()) == (board.COLOURS["green"], board.COLOURS["orange"])
    assert [each.get_text() for each in chart.get_legend().get_texts()] == ["answered", "shed"]


def test_prometheus_is_set_up_as_the_kit_does_but_for_the_server_and_the_interval(board):
    own = yaml.safe_load(board.config("127.0.0.1:8123"))
    kit = yaml.safe_load((KIT / "prometheus.yaml").read_text(encoding="utf-8"))
    assert own["scrape_configs"][0]["job_name"] == kit["scrape_configs"][0]["job_name"]
    assert own["scrape_configs"][0]["static_configs"] == [{"targets": ["127.0.0.1:8123"]}]
    assert own["rule_files"] == [str(KIT / name) for name in kit["rule_files"]]
