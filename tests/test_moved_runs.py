"""Runs go on after their files, and they themselves, have moved; and for more epochs than they had."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from anytime_lct import verbs
from anytime_lct.cli.main import run as program
from anytime_lct.data import datasets
from anytime_lct.errors import CheckpointError, ModelError, RecipeError
from anytime_lct.models import networks
from anytime_lct.models.imports import local_files
from anytime_lct.recipes import reading
from anytime_lct.run_folder import checkpoint
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.paths import UNCHANGED, Changes
from anytime_lct.training.events import Note
from anytime_lct.training.learner import is_slot
from anytime_lct.training.run import train
from anytime_lct.training.schedule import Clock

NET = """
from torch import nn
from layers import WIDTH
from parts.acts import Act

def make(outputs):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), Act(), nn.Linear(WIDTH, 8), Act(), nn.Linear(8, outputs))
"""


def write_network(folder: Path, width: int = 12) -> None:
    (folder / "parts").mkdir(parents=True)
    (folder / "net.py").write_text(NET)
    (folder / "layers.py").write_text(f"WIDTH = {width}\n")
    (folder / "parts" / "__init__.py").touch()
    (folder / "parts" / "acts.py").write_text("from torch import nn\nfrom . import more\nAct = nn.ReLU\n")
    (folder / "parts" / "more.py").write_text("import json\n")
    (folder / "unrelated.py").touch()


def recipe_of(model="mlp", **settings):
    tables = {
        "model": {"name": model, **({"hidden": [8]} if model == "mlp" else {})},
        "cut": {"groups": 2},
        "data": {"name": "digits", "batch_size": 256},
        "groups_schedule": {"name": "constant"},
        "critics_schedule": {"name": "constant"},
        "train": {"epochs": 2, **settings},
    }
    return reading.complete(tables)


def run(recipe, path, stop_after=None, resume=False, changes=UNCHANGED):
    """Train, or stop by SIGINT after so many events; return the notes."""
    notes = []
    events = train(recipe, datasets.from_recipe(recipe), path, resume=resume, changes=changes)
    for count, event in enumerate(events):
        notes += [event.text] if isinstance(event, Note) else []
        if count == stop_after:
            os.kill(os.getpid(), signal.SIGINT)
    return notes


def weights(path):
    return {
        **checkpoint.load_tensors(path / "main.safetensors"),
        **checkpoint.load_tensors(path / "critics.safetensors"),
    }


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(autouse=True)
def every_step_is_shown(monkeypatch):
    monkeypatch.setattr("anytime_lct.training.loop.REPORT_SECONDS", -1.0)


def test_a_run_works_after_its_network_has_changed_and_it_has_moved(tmp_path, monkeypatch):
    write_network(tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    recipe = recipe_of("net.py:make")
    run(recipe, Path("whole"))
    with pytest.raises(KeyboardInterrupt):
        run(recipe, Path("cut"), stop_after=3)
    copies = sorted(file.relative_to("cut/network").as_posix() for file in Path("cut/network").rglob("*.py"))
    assert copies == ["layers.py", "net.py", "parts/__init__.py", "parts/acts.py", "parts/more.py"]
    assert reading.read(Path("cut/recipe.toml")).model.name == "network/net.py:make"

    shutil.move("cut", tmp_path / "elsewhere")
    for name in ("net.py", "layers.py"):
        Path(name).write_text("raise SystemExit('the original')\n")
    monkeypatch.chdir(tmp_path)
    verbs.train(None, "elsewhere", resume=True)
    assert same(weights(tmp_path / "here/whole"), weights(tmp_path / "elsewhere"))
    assert run_folder.open_run(Path("elsewhere")).model == "net.py:make"


def test_an_altered_copy_is_refused_and_another_can_be_named(tmp_path):
    write_network(tmp_path / "here")
    path, model = tmp_path / "run", f"{tmp_path}/here/net.py:make"
    run(recipe_of(model), path)
    (path / "network" / "layers.py").write_text("WIDTH = 13\n")
    for call in (lambda: run_folder.open_run(path), lambda: verbs.train(None, path, resume=True)):
        with pytest.raises(CheckpointError, match=r"layers.py' as it was .* altered or missing; .* --model path/to"):
            call()
    assert run_folder.open_run(path, Changes(model=model)).model == "net.py:make"
    with pytest.raises(ModelError, match="not there; name it with --model"):
        run_folder.open_run(path, Changes(model="absent.py:make"))
    verbs.train(None, path, resume=True, changes=Changes(model=model))  # copies the network again
    assert run_folder.open_run(path).network.num_groups == 2


def test_networks_of_two_folders_have_modules_of_their_own(tmp_path):
    for width in (12, 20):
        write_network(tmp_path / str(width), width)
    for width in (12, 20, 12):
        model = networks.build(f"{tmp_path / str(width)}/net.py:make", (1, 8, 8), 10)
        assert model.get_submodule("1").out_features == width  # type: ignore[union-attr]


def test_local_files_are_those_that_imports_run(tmp_path):
    write_network(tmp_path)
    (tmp_path / "net.py").write_text("import parts.acts, torch\nfrom .layers import WIDTH\nimport missing\n")
    files = [file.relative_to(tmp_path).as_posix() for file in local_files(tmp_path / "net.py")]
    assert sorted(files) == ["layers.py", "net.py", "parts/__init__.py", "parts/acts.py", "parts/more.py"]


def test_changed_weights_are_refused_where_they_are_still_needed(tmp_path):
    run(recipe_of(), tmp_path / "first")
    run(recipe_of(weights=str(tmp_path / "first" / "main.safetensors")), tmp_path / "second")
    shutil.rmtree(tmp_path / "second" / "checkpoints")
    (tmp_path / "first" / "main.safetensors").write_bytes(b"others")
    with pytest.raises(CheckpointError, match=r"main.safetensors' as it was when the run"):
        verbs.train(None, tmp_path / "second", resume=True)


def test_a_text_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("in the beginning was the word\n" * 200)
    recipe = reading.complete(
        {
            "data": {"name": "text", "path": "text.txt", "batch_size": 4, "sequence_length": 20},
            "model": {"name": "lstm", "layers": 2, "units": 8, "embedding": 8},
            "cut": {"groups": 2},
            "train": {"epochs": 1},
        }
    )
    facts = datasets.from_recipe(recipe).facts
    run_folder.create(Path("run"), recipe, facts)
    Path("other").mkdir()
    monkeypatch.chdir("other")
    assert datasets.from_recipe(run_folder.read(Path("../run"))[0]).facts == facts
    Path("../text.txt").rename("text.txt")
    assert datasets.from_recipe(run_folder.read(Path("../run"), Changes(data_root="."))[0]).facts == facts


def test_an_extended_run_is_the_longer_one_where_it_keeps_its_optimizers(tmp_path):
    run(recipe_of(epochs=4), tmp_path / "long")
    run(recipe_of(keep_optimizer=True), tmp_path / "short")
    (note,) = run(recipe_of(), tmp_path / "short", resume=True, changes=Changes(epochs=4))
    assert note == (
        "The run goes on from 2 to 4 epochs; from epoch 3 on, learning rates follow the schedule (constant) of 4 "
        "epochs, now at 1 of their peak."
    )
    assert same(weights(tmp_path / "long"), weights(tmp_path / "short"))
    assert run_folder.read(tmp_path / "short")[0].train.epochs == 4
    with pytest.raises(RecipeError, match="--epochs of at least 4, the epochs of the whole run, got 3"):
        run(recipe_of(), tmp_path / "short", resume=True, changes=Changes(epochs=3))


def test_a_finished_run_has_no_state_of_optimizers_and_starts_them_afresh(tmp_path):
    run(recipe_of(), tmp_path / "whole")
    (step,) = (tmp_path / "whole" / "checkpoints").iterdir()
    names = [name for group in checkpoint.load(step, 2)[0].values() for name in group]
    assert names and not any(map(is_slot, names))
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (note,) = run(recipe_of(), tmp_path / "whole", resume=True, changes=Changes(epochs=4))
    assert note.endswith(
        "(train.keep_optimizer=true keeps it), so they start fresh, with rates that rise over 6 steps."
    )
    with pytest.raises(KeyboardInterrupt):
        run(recipe_of(), tmp_path / "cut", resume=True, changes=Changes(epochs=4), stop_after=4)
    assert not run(recipe_of(), tmp_path / "cut", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_rates_rise_after_a_fresh_start():
    assert [Clock(40, 4, fresh_start=20).warmth(step) for step in (20, 21, 22, 23, 24, 39)] == [
        0.25,
        0.5,
        0.75,
        1,
        1,
        1,
    ]
    assert Clock(10_000, 1000, fresh_start=5000).rise == 500
    assert Clock(10, 5).warmth(0) == 1.0


def test_the_command_extends_a_run_and_refuses_other_options(tmp_path, capfd):
    run(recipe_of(), tmp_path / "run")
    for code, says, options in (
        (2, "at most --epochs, --data-root and --model", ["--seed", "1"]),
        (2, "--epochs of at least 2", ["--epochs", "1"]),
        (0, "from 2 to 3 epochs", ["--epochs", "3"]),
    ):
        with pytest.raises(SystemExit) as ended:
            program(["train", "--resume", "--run-dir", str(tmp_path / "run"), *options])
        assert (ended.value.code or 0) == code and says in capfd.readouterr().err
