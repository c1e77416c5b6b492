"""What people read: help and tables fit into 80 columns, and break between words."""

from __future__ import annotations

from itertools import pairwise

import pytest
from bundles import make_profile

from anytime_lct.cli.analyze import table
from anytime_lct.cli.main import PANELS, VERBS
from anytime_lct.cli.main import run as program
from anytime_lct.cli.progress import epoch_line
from anytime_lct.cli.screen import screen
from anytime_lct.training.events import Epoch


def lines_of(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    with pytest.raises(SystemExit) as end:
        program(arguments)
    assert not end.value.code
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("verb", VERBS)
def test_help_breaks_lines_where_the_screen_ends(verb, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = lines_of([verb, "-h"], capsys)
    assert max(map(len, lines)) <= 80
    text = lines[: next(i for i, line in enumerate(lines) if line.startswith("╭"))]
    example = next(i for i, line in enumerate(text) if line.strip().startswith("Example: anytime-lct "))
    assert not text[example + 1], "the example takes one line"
    for line, next_line in pairwise(text[1 : example + 1]):
        first = next_line.split()[0] if next_line.strip() else ""
        assert not line.strip() or not first or len(f"{line} {first}") > 79, f"'{first}' fits behind '{line}'"


def test_the_verbs_are_grouped_by_the_way_of_the_data(capsys):
    panels = [line.split()[1] for line in lines_of(["--help"], capsys) if line.startswith("╭")]
    assert panels == ["Options", *PANELS]


def test_completion_names_the_verbs(capsys, monkeypatch):
    monkeypatch.setenv("_ANYTIME_LCT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "anytime-lct cal")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert lines_of([], capsys) == ["calibrate"]


def test_the_table_of_exits_fits_and_breaks_between_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    screen().print(table(make_profile()))
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert max(map(len, lines)) <= 80
    heading = "".join(lines[:4])
    assert all(word in heading for word in ("parameters", "validation", "accuracy", "latency"))
    assert any(line.startswith("3 (main) *") and "150" in line for line in lines)


def test_an_epoch_takes_two_lines_where_one_is_too_wide():
    epoch = Epoch(3, 60, 12.5, (2.225, 2.266), (2.1, 2.2), (0.5, 0.75))
    line = epoch_line(epoch, "accuracy", 100)
    assert line == "epoch   3    12.5 s  loss 2.225 2.266  validation accuracy 50.00% 75.00%"
    assert epoch_line(epoch, "accuracy", 60).splitlines() == [
        "epoch   3    12.5 s  loss 2.225 2.266",
        "    validation accuracy 50.00% 75.00%",
    ]
