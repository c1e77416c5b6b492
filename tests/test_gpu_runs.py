"""Whole runs as on a GPU: every part of a run folder is written from, and read to, another device than the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from meta_device import META, ReadingMeta, sgd

from anytime_lct.data import datasets
from anytime_lct.recipes import reading as recipes
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal
from anytime_lct.run_folder.paths import Changes
from anytime_lct.training import learner, run
from anytime_lct.training.processes.team import Team

METHODS = ["lct", "bp", "joint", "posthoc", "dni", "admm"]


def train(method: str, path: Path, tables: dict, *, resume: bool = False, epochs: int = 1) -> None:
    recipe = recipes.complete(
        {
            "data": {"name": "digits", "batch_size": 500, "augment": "flip"},
            "model": {"name": "mlp", "hidden": [8, 8]},
            "cut": {"groups": 3},
            **tables,
            "train": {"method": method, "epochs": epochs, "average": 0.9, "clip_norm": 1.0, **tables.get("train", {})},
        }
    )
    changes = Changes(epochs=epochs) if resume else run.UNCHANGED
    data = datasets.from_recipe(recipe)
    with ReadingMeta():
        for _ in run.train(recipe, data, path, team=Team(META), resume=resume, changes=changes):
            pass


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
@pytest.mark.parametrize("method", METHODS)
def test_a_run_on_another_device_is_written_and_evaluated_and_goes_on(method, folder, monkeypatch):
    monkeypatch.setattr(learner, "OPTIMIZERS", {"sgd": sgd, "adam": sgd, "adamw": sgd})
    monkeypatch.setattr("anytime_lct.training.loop.REPORT_SECONDS", -1.0)
    tables: dict[str, dict] = {
        "posthoc": {"train": {"weights": str(folder / "lct")}},
        "admm": {"train": {"average": 0.0}, "data": {"name": "digits", "batch_size": 1293, "augment": "none"}},
    }.get(method, {})
    if method == "posthoc" and not (folder / "lct").exists():
        train("lct", folder / "lct", {})
    train(method, folder / method, tables)
    if method in ("lct", "bp"):
        train(method, folder / method, tables, resume=True, epochs=2)
        assert len(journal.read(folder / method / run_folder.METRICS)) == 2
    weights, _ = run_folder.read_weights(folder / method)
    assert weights and all(torch.equal(value, torch.ones_like(value)) for value in weights.values())
