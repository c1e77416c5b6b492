"""Training: one seed, one result; interrupted and resumed runs; what ends in a sentence."""

from __future__ import annotations

import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import programs
import pytest
import torch
from optimizers import SGD_AND_ADAM
from training_processes import resume, start_training, wait_for

from anytime_lct import disk, lct
from anytime_lct import task as tasks
from anytime_lct.data import datasets as data
from anytime_lct.errors import CheckpointError, DivergenceError, RecipeError
from anytime_lct.recipes import reading as recipes
from anytime_lct.recipes.recipe import ScheduleRecipe
from anytime_lct.run_folder import checkpoint
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.build import build_network
from anytime_lct.training.events import Epoch, Progress
from anytime_lct.training.run import train
from anytime_lct.training.schedule import factor

TINY = {
    **SGD_AND_ADAM,
    "model": {"name": "resnet", "depth": 8, "width": 4},
    "cut": {"groups": 3},
    "data": {"name": "digits", "batch_size": 256},
    "train": {"epochs": 3, "clip_norm": 0.0},
}
TEXT = {
    "data": {"name": "pydoc", "batch_size": 64, "sequence_length": 300},
    "model": {"name": "lstm", "layers": 2, "units": 8, "embedding": 4, "dropout": 0.2},
    "cut": {"groups": 2},
    "train": {"epochs": 1},
}


def tiny(base=TINY, **sections):
    return recipes.complete({k: {**base.get(k, {}), **sections.get(k, {})} for k in base.keys() | sections.keys()})


def run(recipe, path, stop_after=None, resume=False):
    """Train, or stop by SIGINT after so many progress events; return the epochs seen."""
    epochs = []
    events = train(recipe, data.from_recipe(recipe), path, resume=resume)
    for count, event in enumerate(events):
        if isinstance(event, Epoch):
            epochs.append(event)
        if count == stop_after:
            os.kill(os.getpid(), signal.SIGINT)
    return epochs


def weights(path):
    return {
        **checkpoint.load_tensors(path / "main.safetensors"),
        **checkpoint.load_tensors(path / "critics.safetensors"),
    }


def metrics(path):
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(autouse=True)
def every_step_is_shown(monkeypatch):
    monkeypatch.setattr("anytime_lct.training.loop.REPORT_SECONDS", -1.0)


VARIANTS = [
    tiny(),
    tiny(rule={"form": "scalar", "critic_loss": "paper"}, critics={"name": "adamw", "lr": 1e-3}),
    tiny(
        train={"channels_last": True, "label_smoothing": 0.1, "average": 0.8, "class_weights": "balanced"},
        data={"mixup": 0.4, "cutmix": 1.0},
        groups={"name": "adam", "lr": 1e-3},
    ),
    tiny(train={"precision": "bfloat16", "clip_norm": 1.0}),
    tiny(TEXT),
]


@pytest.mark.parametrize("recipe", VARIANTS, ids=["plain", "scalar", "channels-last-average-mixed", "bfloat16", "text"])
def test_a_run_interrupted_twice_ends_with_the_weights_of_an_undisturbed_one(recipe, tmp_path):
    run(recipe, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "cut", stop_after=1)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, tmp_path / "cut", stop_after=5, resume=True)
    run(recipe, tmp_path / "cut", resume=True)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path):
    run(tiny(), tmp_path / "whole")
    recipe, lines = tiny(train={"checkpoint_minutes": 1e-9}), tmp_path / "cut" / "metrics.jsonl"
    with start_training(recipe, tmp_path / "cut") as ranks:
        wait_for(lambda: list((tmp_path / "cut" / "checkpoints").glob("step-*7")))
        ranks.signal(signal.SIGKILL)
        ranks.finish(-signal.SIGKILL)
    assert not lines.exists() or len(lines.read_text().splitlines()) < 3
    resume(tmp_path / "cut")
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_the_same_seed_gives_the_same_weights_and_another_does_not(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(7)  # the ambient random state must not matter
        run(tiny(train={"epochs": 1, "seed": seed}), tmp_path / name)
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not same(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_a_step_of_the_trainer_is_the_rule_with_sgd(tmp_path):
    """One minibatch by hand: gradients of the rule, momentum SGD for groups and Adam for critics by torch."""
    recipe = tiny(train={"epochs": 1}, data={"batch_size": 2000}, groups_schedule={"name": "constant"})
    dataset = data.from_recipe(recipe)
    run(recipe, tmp_path / "run")
    network = build_network(recipe, dataset.facts).train()
    (x, y) = next(dataset.batches("train", 0))
    loss, rule = partial(tasks.losses, "classification"), lct.Rule(**recipe.rule.model_dump())
    descents, h = [], x
    for f, c in zip(network.groups, [*network.critics, None], strict=True):
        descents.append(lct.descend(f, c, h, y, loss, rule))
        torch.optim.SGD(f.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4).step()
        h = descents[-1].h
    for c, here, after in zip(network.critics, descents, descents[1:], strict=False):
        here.learn(after.L)
        torch.optim.Adam(c.parameters(), lr=recipe.critics.lr).step()
    expected = {**network.main_state(), **network.critics_state()}
    for name, value in weights(tmp_path / "run").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_best_weights_are_kept_when_asked(tmp_path):
    recipe = tiny(train={"keep": "best", "epochs": 4}, groups={"lr": 0.3})
    best = max(run(recipe, tmp_path / "run"), key=lambda epoch: (epoch.scores[-1], -epoch.epoch))
    assert evaluate_main(tmp_path / "run") == pytest.approx(best.scores[-1])


def evaluate_main(path):
    from anytime_lct.evaluation import evaluate

    opened = run_folder.open_run(path)
    return evaluate(
        opened.network, data.from_recipe(opened.recipe).batches("validation"), "classification"
    ).mean_scores()[-1]


def test_a_run_keeps_and_evaluates_the_average_of_its_weights(tmp_path):
    recipe = tiny(train={"epochs": 1, "average": 0.8})
    (epoch,) = run(recipe, tmp_path / "run")
    assert evaluate_main(tmp_path / "run") == pytest.approx(epoch.scores[-1])
    tensors = checkpoint.load(checkpoint.newest(tmp_path / "run" / "checkpoints"), 3)[0][1]
    count = tensors["main_averaged"]
    assert count == pytest.approx(1 - 0.8**6)
    kept = weights(tmp_path / "run")
    for name in (key.removeprefix("main_average.") for key in tensors if key.startswith("main_average.")):
        assert torch.equal(kept[name], tensors[f"main_average.{name}"] / count)
        assert not torch.equal(kept[name], tensors[f"main.{name}"])


def test_training_learns(tmp_path):
    epochs = run(tiny(train={"epochs": 6}, data={"batch_size": 64}), tmp_path / "run")
    assert epochs[-1].train_losses[-1] < epochs[0].train_losses[-1] / 2
    assert epochs[-1].scores[-1] > 0.5  # chance is 0.1


def test_divergence_names_the_exit_and_the_step(tmp_path):
    with pytest.raises(DivergenceError, match=r"exit 1 became (nan|inf) at step \d+ \(epoch 1\)"):
        run(tiny(groups={"name": "sgd", "lr": 1e30}), tmp_path / "run")
    assert not (tmp_path / "run" / "main.safetensors").exists()


def test_progress_counts_minibatches_and_epochs(tmp_path):
    recipe = tiny(train={"epochs": 2})
    events = [e for e in train(recipe, data.from_recipe(recipe), tmp_path / "run") if isinstance(e, Progress)]
    batches = -(-1293 // 256)
    assert [(e.epoch, e.batch) for e in events] == [(k, b) for k in (1, 2) for b in range(1, batches + 1)]
    assert all(len(e.losses) == 3 for e in events)


def test_a_folder_with_a_run_is_not_overwritten_and_a_held_one_not_entered(tmp_path):
    recipe = tiny(train={"epochs": 1})
    run(recipe, tmp_path / "run")
    with pytest.raises(CheckpointError, match="holds a run already"):
        run(recipe, tmp_path / "run")
    with run_folder.locked(tmp_path / "run"), pytest.raises(CheckpointError, match="Another process"):
        run(recipe, tmp_path / "run", resume=True)


def test_damaged_checkpoints_and_weights_are_told_apart(tmp_path):
    recipe, path = tiny(train={"epochs": 1}), tmp_path / "run"
    run(recipe, path)
    newest = checkpoint.newest(path / "checkpoints")
    assert newest is not None
    file = newest / "group_2.safetensors"
    whole = file.read_bytes()
    for damaged in (whole[:-10], whole[:200] + b"x" + whole[201:], b""):
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"'group_2\.safetensors' is missing, truncated or altered"):
            run(recipe, path, resume=True)
    file.write_bytes(whole)
    (newest / "progress.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"progress.json"):
        run(recipe, path, resume=True)
    (path / "main.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        run_folder.open_run(path)
    (path / "facts.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"facts.json is missing or altered"):
        run_folder.open_run(path)


def test_only_the_two_newest_checkpoints_are_kept_and_none_half_written(tmp_path, monkeypatch):
    def names():
        return sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())

    with pytest.raises(KeyboardInterrupt):
        run(tiny(), tmp_path / "run", stop_after=15)
    assert len(names()) == 2 and names()[0] == "step-00000012"
    run(tiny(), tmp_path / "run", resume=True)
    assert names() == ["step-00000018"]  # of a finished run, the newest

    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "flush", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        checkpoint.write_group(checkpoint.begin(tmp_path / "run" / "checkpoints", 99), 1, {})
    assert names() == ["step-00000018"]


def test_an_unknown_device_is_refused(tmp_path):
    with pytest.raises(RecipeError, match="device that this machine has"):
        run(tiny(train={"device": "abacus"}), tmp_path / "run")
    assert not Path(tmp_path / "run").exists()


@pytest.mark.parametrize("total", [10, 57, 100])
def test_schedules_are_torchs(total):
    weight = torch.nn.Parameter(torch.zeros(1))

    def rates(make):
        optimizer = torch.optim.SGD([weight], lr=1.0)
        schedule, values = make(optimizer), []
        for _ in range(total):
            values.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return values

    def ours(**options):
        return [factor(ScheduleRecipe(**options), step, total, 10) for step in range(total)]

    torchs = torch.optim.lr_scheduler
    assert ours(name="cosine") == pytest.approx(rates(lambda o: torchs.CosineAnnealingLR(o, total)), abs=1e-9)
    assert ours(name="step", milestones=(0.5, 0.75)) == pytest.approx(
        rates(lambda o: torchs.MultiStepLR(o, [round(total * 0.5), round(total * 0.75)])), abs=1e-9
    )
    assert ours(name="one-cycle") == pytest.approx(
        rates(lambda o: torchs.OneCycleLR(o, 1.0, total + 0, div_factor=25))[:total], abs=1e-6
    )
    warm = ours(name="constant", warmup=0.5)
    assert warm[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(warm[5:]) == {1.0}


RESIDENT = """
import torch
from anytime_lct.training.memory import keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

{call}
before = resident()
x = torch.ones(2**25)
del x
print(resident() - before)
"""


PEAK = """
import numpy as np
import torch
from anytime_lct.training.memory import PeakMemory, keep_freed_memory

keep_freed_memory()
blocks = [np.ones(2**20, np.uint8) for _ in range(100)]  # what data are read into, and free again
large = np.ones(100 * 2**20, np.uint8)
del blocks, large
memory = PeakMemory(torch.device("cpu"))
before = memory.bytes()
used = torch.ones(90 * 2**18)
del used
print(before, memory.bytes())
"""


def numbers_of(code):
    """Run a program; return the numbers that it prints."""
    program = programs.run([sys.executable, "-c", code], seconds=120)
    assert program.returncode == 0, program.stderr
    return [int(number) for number in program.stdout.split()]


@pytest.mark.skipif(sys.platform != "linux", reason="the system's own count of resident memory")
def test_the_peak_of_memory_is_of_training_alone():
    before, after = (number / 2**20 for number in numbers_of(PEAK))
    assert before < 5 and 85 < after < 100


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone gives memory back at once")
def test_freed_memory_is_kept_when_asked():
    (keeping,), (giving_back,) = (numbers_of(RESIDENT.format(call=c)) for c in ("assert keep_freed_memory()", ""))
    assert keeping > 0.9 * 2**27 and giving_back < 0.1 * 2**27
