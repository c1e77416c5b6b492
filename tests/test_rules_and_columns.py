"""Confidence rules and the columns of fractal networks as rows of an experiment, on tiny networks."""

from __future__ import annotations

import pytest

from anytime_lct.exits.profile import Profile
from anytime_lct.exits.thresholds import ThresholdTable
from anytime_lct.reproduce import catalogue, figures, pictures, report, runner
from anytime_lct.reproduce.plan import Cell, Experiment, Run

DIGITS = {"name": "digits", "batch_size": 300}
LCT = Run(
    "tiny-lct",
    {"data": DIGITS, "model": {"name": "mlp", "hidden": [16, 16]}, "cut": {"groups": 3, "by": "layers"},
     "train": {"epochs": 1}},
    rules=(0.9, 1.5),
)  # fmt: skip
FRACTAL = Run(
    "tiny-fractal",
    {"data": DIGITS, "model": {"name": "fractalnet", "columns": 2, "width": [4, 4]},
     "train": {"epochs": 1, "method": "bp"}},
)  # fmt: skip


def test_rules_and_columns_are_figures_at_their_own_cost(tmp_path, program):
    cells = [Cell("fixed", "Main", LCT.name), *(Cell("rules", f"{share}", LCT.name, rule=share) for share in LCT.rules)]
    cells += [*(Cell("columns", f"{path}", FRACTAL.name, path=path) for path in (1, 2)), Cell("all", "", FRACTAL.name)]
    experiment = Experiment("tiny", "", "exits", (LCT, FRACTAL), tuple(cells))
    jobs = runner.jobs(experiment.runs, 1, tmp_path, str(tmp_path))
    for job in jobs:
        states = []
        for command in job.commands(job.state()):
            states.append(job.state())
            assert program(*command)[0] == 0
        assert job.state() == "done" and states[:2] == ["missing", "trained"] and len(states) == 2 + bool(job.run.rules)
    filled = figures.figures(experiment, jobs, {})
    profile = Profile.load(jobs[0].folder / "profile.json")
    main = profile.cost(3).flops
    rules = ThresholdTable.load(jobs[0].folder / "thresholds.json").rules
    for figure, rule, share in zip(filled[1:3], rules, LCT.rules, strict=True):
        assert rule.mean_flops == pytest.approx(share * main, abs=1)
        assert (figure.mean, figure.detail[0]["flops"]) == (100 * rule.accuracy.value, rule.cost.flops)
    costs = [figure.detail[0]["flops"] for figure in filled[3:]]
    assert costs == sorted(costs) and len({*costs}) == 3
    again = figures.figures(experiment, jobs, {})
    assert again == filled
    summary = report.as_json(experiment, "small", filled, jobs, 1)
    page = report.write(tmp_path / "out", "tiny_small", report.markdown(experiment, "small", filled, 1), summary)
    elsewhere = runner.jobs(experiment.runs, 1, tmp_path / "elsewhere", str(tmp_path))
    known, complete, _ = report.read_earlier(page[1], experiment, elsewhere)
    assert complete == {job.name for job in elsewhere} and figures.figures(experiment, elsewhere, {}, known) == filled
    assert pictures.draw(experiment, filled, tmp_path / "tiny.png").stat().st_size > 1000


def test_the_exits_of_the_toolkit_have_rules_on_both_methods_and_the_columns_of_fractalnet():
    cells = catalogue.experiment("exits", "small").cells
    rules = {(cell.row.partition(",")[0], cell.rule) for cell in cells if cell.rule}
    assert rules == {(method, share) for method in ("LCT", "joint losses") for share in (0.4, 0.6, 0.8)}
    assert [cell.path for cell in cells if cell.row == "columns, FractalNet, Fashion-MNIST"] == [1, 2, 3, 0]
