"""The paper's experiments: their settings are the paper's, their figures the run folders', and nothing is run twice."""

from __future__ import annotations

import json
import statistics

import pytest
from forked_python import python
from test_cli import MODULE, call

from anytime_lct.errors import CheckpointError, LCTError, RecipeError
from anytime_lct.exits.profile import Profile
from anytime_lct.recipes import reading as recipes
from anytime_lct.reproduce import catalogue, figures, pages, paper, pictures, report, runner, settings
from anytime_lct.reproduce.plan import Cell, Experiment, Run
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.training.methods.table import checked, expect_processes

MLP = {
    "data": {"name": "digits", "batch_size": 300},
    "model": {"name": "mlp", "hidden": [16, 16]},
    "train": {"epochs": 1},
}


def tiny(**more: Run) -> Experiment:
    bp = Run("tiny-bp", {**MLP, "train": {"epochs": 1, "method": "bp"}})
    post = Run(
        "tiny-posthoc", {**MLP, "cut": {"groups": 3}, "train": {"epochs": 1, "method": "posthoc"}}, after="tiny-bp"
    )
    runs = {"bp": bp, "posthoc": post, **more}
    cells = [Cell("BP", "Main", bp.name, paper=98.0), Cell("post-hoc", "Main", post.name)]
    cells += [Cell("post-hoc", "Sub_1", post.name, 1), *(Cell(key, "Main", run.name) for key, run in more.items())]
    return Experiment("tiny", "A small table", "quality", tuple(runs.values()), tuple(cells), differences=("All.",))


@pytest.fixture(autouse=True)
def runs_start_at_once(monkeypatch):
    monkeypatch.setattr(runner, "PROGRAM", (python(), *MODULE))


def work(experiment, folder, seeds=1, only=None):
    jobs = runner.jobs(experiment.runs, seeds, folder, str(folder))
    todo = [job for job in jobs if job.state() != "done" and (only is None or only in job.name)]
    lines: list[str] = []
    failed = runner.run_jobs(todo, 2, 1, lines.append)
    return jobs, todo, failed, lines


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", catalogue.TITLES)
def test_every_experiment_is_made_of_whole_recipes(name, scale, tmp_path):
    experiment = catalogue.experiment(name, scale)
    jobs = runner.jobs(experiment.runs, 2, tmp_path, "data")
    assert len({job.name for job in jobs}) == len(jobs) == 2 * len(experiment.runs)
    runs = {run.name for run in experiment.runs}
    assert experiment.cells and {cell.run for cell in experiment.cells} <= runs
    assert len({(cell.row, cell.column) for cell in experiment.cells}) == len(experiment.cells)
    for job in jobs:
        assert job.recipe.train.seed == job.seed
        expect_processes(checked(job.recipe), job.run.workers, 1)
        if job.recipe.train.method == "posthoc":
            assert job.after is not None and job.recipe.train.weights == str(job.after.folder)
    if scale == "paper" and name in ("table1", "table3", "table5", "table7", "fig5", "fig6"):
        assert any(cell.paper is not None for cell in experiment.cells)


def test_the_same_run_has_the_same_recipe_in_every_experiment():
    seen: dict[str, object] = {}
    for scale in ("small", "paper"):
        for name in catalogue.TITLES:
            for run in catalogue.experiment(name, scale).runs:
                assert seen.setdefault(run.name, (run.tables, run.workers)) == (run.tables, run.workers), run.name


def test_the_papers_settings_are_those_of_section_v_b():
    runs = {run.name: run.recipe(0, ".") for run in catalogue.experiment("table1", "paper").runs}
    it = runs["cifar10-resnet50-lct-n3"]
    assert it.train.epochs * -(-50_000 // it.data.batch_size) == 80_155
    assert (it.groups.name, it.groups.lr, it.groups.momentum, it.groups.weight_decay) == ("sgd", 0.1, 0.9, 5e-4)
    assert (it.groups_schedule.name, it.groups_schedule.milestones, it.groups_schedule.gamma) == (
        "step",
        (0.5, 0.75),
        0.1,
    )
    assert (it.critics.name, it.critics.lr, it.critics.weight_decay) == ("adam", 1e-4, 0.0)
    assert it.critics_schedule.name == "constant"
    assert (it.critic.kind, it.rule.form, it.rule.matching, it.rule.critic_loss) == (
        "paper",
        "per-sample",
        "l1",
        "paper",
    )
    assert it.cut.places == ("layer1", "layer2", "layer3")
    imagenet = runs["imagenet-resnet101-lct-n3"]
    assert (imagenet.data.batch_size, imagenet.train.epochs, imagenet.groups.lr) == (32, 75, 0.0125)
    assert imagenet.groups_schedule.milestones == (23 / 75, 40 / 75, 60 / 75, 70 / 75)
    assert imagenet.critic.kind == "paper-imagenet"
    texts = {run.name: run.recipe(0, ".") for run in catalogue.experiment("table5", "paper").runs}
    ptb, enwik8 = texts["ptb-lstm2-lct-n1"], texts["enwik8-lstm4-lct-n3"]
    assert (ptb.model.options, ptb.train.epochs, ptb.groups.lr) == (
        {"layers": 2, "units": 950},
        100,
        2.7e-3,
    )
    assert (ptb.data.batch_size, ptb.data.sequence_length, ptb.groups.weight_decay) == (128, 150, 1.2e-5)
    assert (enwik8.train.epochs, enwik8.groups.lr, enwik8.groups_schedule.name) == (50, 1e-4, "constant")


def test_table_viii_counts_to_the_papers_parameters(tmp_path):
    experiment = catalogue.experiment("table8", "small")
    jobs = runner.jobs(experiment.runs, 1, tmp_path, ".")
    wanted = {("ResNet-50, CIFAR-10", 1): 1.82, ("ResNet-50, CIFAR-10", 4): 23.82, ("ResNet-50, CIFAR-100", 3): 10.53}
    chosen = [cell for cell in experiment.cells if (cell.row, cell.exit) in wanted]
    part = Experiment("table8", "", "complexity", experiment.runs, tuple(chosen))
    for figure in figures.figures(part, jobs, {}):
        assert figure.mean == pytest.approx(wanted[figure.cell.row, figure.cell.exit], abs=0.02)
        assert figure.cell.paper == pytest.approx(wanted[figure.cell.row, figure.cell.exit])


def test_runs_are_made_once_and_reported_with_mean_and_deviation(tmp_path):
    experiment = tiny()
    jobs, todo, failed, lines = work(experiment, tmp_path, seeds=2)
    assert len(todo) == 4 and not failed and len([line for line in lines if "done in" in line]) == 4
    results = figures.figures(experiment, jobs, {})
    values = [
        Profile.load(tmp_path / f"tiny-bp-seed{seed}" / run_folder.PROFILE).exits[0].test.value for seed in (0, 1)
    ]
    assert results[0].values == tuple(100 * value for value in values)
    assert results[0].mean == pytest.approx(100 * statistics.fmean(values))
    assert results[0].deviation == pytest.approx(100 * statistics.stdev(values))
    assert results[1].values == pytest.approx(results[0].values), "the frozen main network is that of backprop"
    assert results[2].values != results[1].values
    assert work(experiment, tmp_path, seeds=2)[1] == []
    behind = next(job for job in jobs if job.after is not None)
    assert runner.with_predecessors([behind]) == [behind]
    (behind.after.folder / run_folder.MAIN).rename(tmp_path / "away")
    assert runner.with_predecessors([behind]) == [behind, behind.after], "its figures are known, its weights are needed"
    (tmp_path / "away").rename(behind.after.folder / run_folder.MAIN)
    text = report.markdown(experiment, "small", results, 2)
    assert f"| BP | {results[0].mean:.2f} ± {results[0].deviation:.2f} (n = 2) (98.00) |" in text
    assert "- All." in text
    summary = report.as_json(experiment, "small", results, jobs, 2)
    paths = report.write(tmp_path / "out", "tiny_small", text, summary)
    assert paths[0].read_text(encoding="utf-8") == text
    known, whole, before = report.read_earlier(paths[1], experiment, jobs)
    assert whole == {job.name for job in jobs}
    elsewhere = runner.jobs(experiment.runs, 2, tmp_path / "elsewhere", "data")
    assert figures.figures(experiment, elsewhere, {}, known) == results
    of_another_counter = {
        cell: {seed: (value, {**detail, "flops": 1}) for seed, (value, detail) in by_seed.items()}
        for cell, by_seed in known.items()
    }
    assert figures.figures(experiment, elsewhere, {}, of_another_counter) == results, "multiply-adds are counted anew"
    fewer = runner.jobs(experiment.runs, 1, tmp_path / "elsewhere", "data")
    assert figures.figures(experiment, fewer, {}, known) == results, "fewer seeds asked for, none lost"
    again = report.as_json(experiment, "small", results, elsewhere, 2, before)
    assert again == summary
    other = Experiment("tiny", "", "quality", tuple(Run(r.name, {**r.tables, "groups": {"lr": 0.2}}, r.after)
                       for r in experiment.runs), experiment.cells)  # fmt: skip
    assert report.read_earlier(paths[1], other, runner.jobs(other.runs, 2, tmp_path / "elsewhere", "data"))[1] == set()
    read = json.loads(paths[1].read_text(encoding="utf-8"))
    del read["recipes"]["tiny-posthoc"]["posthoc"], read["recipes"]["tiny-bp"]["train"]["wire"]  # keys of a later day
    (tmp_path / "older.json").write_text(json.dumps(read), encoding="utf-8")
    assert report.read_earlier(tmp_path / "older.json", experiment, jobs)[1] == whole
    read = json.loads(paths[1].read_text(encoding="utf-8"))
    assert read["figures"][0]["values"] == list(results[0].values)
    assert "root" not in read["recipes"]["tiny-bp"]["data"] and str(tmp_path) not in paths[1].read_text(
        encoding="utf-8"
    )
    picture = pictures.draw(experiment, results, tmp_path / "out" / "tiny.png")
    assert picture.stat().st_size > 1000
    page = pages.write(tmp_path / "out" / "tiny.html", experiment, "small", results, 2, picture).read_text("utf-8")
    assert "data:image/png;base64," in page and report.show_cell(results[0], experiment) in page


def test_what_was_not_run_or_failed_says_so(tmp_path):
    wild = Run("tiny-wild", {**MLP, "train": {"epochs": 1, "method": "bp"}, "groups": {"name": "sgd", "lr": 1e30}})
    experiment = tiny(wild=wild)
    jobs, _, failed, _ = work(experiment, tmp_path, only="wild")
    results = figures.figures(experiment, jobs, failed)
    text = report.markdown(experiment, "small", results, 1)
    assert "| BP | not yet run (98.00) |" in text
    assert "failed: The loss became" in text
    assert pictures.draw(experiment, results, tmp_path / "tiny.png").exists()


def test_a_folder_with_another_run_is_refused(tmp_path):
    (job,) = runner.jobs([tiny().runs[0]], 1, tmp_path, str(tmp_path))
    job.folder.mkdir()
    other = recipes.complete({**MLP, "train": {"epochs": 2, "method": "bp"}})
    recipes.write(other, job.folder / run_folder.RECIPE)
    with pytest.raises(CheckpointError, match=r"train\.epochs is 2, expected 1"):
        job.state()
    recipes.write(job.recipe, job.folder / run_folder.RECIPE)
    assert job.state() == "unfinished"
    with pytest.raises(LCTError, match="--resume"):
        runner.expect_none_unfinished([job])


def test_bad_words_end_in_a_sentence(tmp_path):
    with pytest.raises(RecipeError, match="Expected one of table1"):
        catalogue.experiment("table11", "small")
    result = call("reproduce", "table3", "--scale", "huge", cwd=tmp_path)
    assert result.returncode == 2 and "Expected --scale small or paper, got 'huge'" in " ".join(result.stderr.split())
    result = call("reproduce", "table3", "--only", "nothing-*", cwd=tmp_path)
    assert result.returncode == 2 and "got none that matches; they are mnist-mlp-" in " ".join(result.stderr.split())
    assert not list(tmp_path.iterdir())
    listed = call("reproduce", "list", cwd=tmp_path).stdout.splitlines()
    assert [line.split()[0] for line in listed] == list(catalogue.TITLES)


def test_the_papers_tables_are_whole():
    assert paper.TABLE_1["ResNet-50, CIFAR-10"]["LCT_n3"] == paper.TABLE_7["LCT_n3, ResNet-50, CIFAR-10"]["Main"]
    assert paper.TABLE_2["ResNet-182, CIFAR-100"] == {"BP": 77.46, "LCT_n1": 73.29, "LCT_n2": 72.50, "LCT_n3": 72.74}
    assert paper.TABLE_9["LCT_n3, PTB"]["Main"] == paper.TABLE_5["LCT, PTB"]["4 layers"]
    for setting in settings.images("paper"):
        assert setting.paper_row in paper.TABLE_1 and setting.complexity_row in paper.TABLE_8
