"""Several workers: the weights of one, whatever is cut where; and runs that lose a worker."""

from __future__ import annotations

import os
import random
import resource
import signal
import time
import typing
from contextlib import suppress
from functools import partial
from pathlib import Path

import own_digits
import pytest
import torch
from forked_python import forked
from training_processes import (
    checkpoint_names,
    finish,
    launch,
    outcome,
    refusal,
    resume,
    same,
    start_training,
    train,
    wait_for,
)

from anytime_lct.errors import RecipeError
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.training.processes.team import join_team

RESNET = {
    "data": {"name": "digits", "batch_size": 256},
    "model": {"name": "resnet", "depth": 14, "width": 4, "dropout": 0.1},
    "cut": {"groups": 4},
    "train": {"epochs": 2},
}
LSTM = {
    "data": {"name": "text", "path": typing.__file__, "batch_size": 256, "sequence_length": 20},
    "model": {"name": "lstm", "layers": 4, "units": 8, "embedding": 4, "dropout": 0.2},
    "cut": {"groups": 4},
    "train": {"epochs": 1, "clip_norm": 1.0},
}
MLP = {**RESNET, "model": {"name": "mlp", "hidden": [20, 20, 20]}}
VARIANTS = {
    "resnet": RESNET,
    "resnet-scalar-channels-last-average": {
        **RESNET, "rule": {"form": "scalar"}, "train": {"epochs": 2, "channels_last": True, "average": 0.9},
    },
    "lstm": LSTM,
    "lstm-scalar": {**LSTM, "rule": {"form": "scalar"}},
    "mlp-mixed-weighted-accumulated-on-one-device": {
        **MLP, "model": {**MLP["model"], "dropout": 0.2},
        "data": {**MLP["data"], "name": f"{own_digits.__file__}:data", "mixup": 0.4, "cutmix": 1.0},
        "train": {"epochs": 2, "device": "cpu:0", "accumulate": 2, "class_weights": "balanced"},
    },
}  # fmt: skip


def workers_of(process):
    """Process numbers of the workers that a launcher started, in their order."""
    launcher, workers = forked(process.pid), []
    if launcher is None:
        return []
    for child in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        with suppress(FileNotFoundError, ProcessLookupError):  # a child that has ended meanwhile
            if "anytime_lct.cli.main" in Path(f"/proc/{child}/cmdline").read_text().split("\0"):
                workers.append(forked(int(child)))
    return [worker for worker in workers if worker is not None]


@pytest.mark.parametrize("recipe", VARIANTS.values(), ids=VARIANTS.keys())
def test_any_number_of_workers_ends_with_the_weights_and_metrics_of_one(recipe, tmp_path):
    for workers in (1, 2, 3, 4) if recipe is RESNET else (1, 3):
        train(recipe, tmp_path / str(workers), workers)
        assert same(tmp_path / "1", tmp_path / str(workers)), f"{workers} workers"


SLOW = {**RESNET, "train": {"epochs": 20, "checkpoint_minutes": 1e-9}}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_with_another_number_of_workers(number, tmp_path):
    short = {**SLOW, "train": {**SLOW["train"], "epochs": 6}}
    train(short, tmp_path / "whole")
    with launch(short, tmp_path / "cut", 2) as process:
        wait_for(lambda: checkpoint_names(tmp_path / "cut"))
        process.send_signal(number)
        assert "a checkpoint is written" in finish(process, 130)
    resume(tmp_path / "cut", 4)
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_a_killed_worker_ends_the_run_with_its_name(tmp_path):
    with launch(SLOW, tmp_path / "run", 2) as process:
        wait_for(lambda: checkpoint_names(tmp_path / "run"))
        os.kill(workers_of(process)[1], signal.SIGKILL)
        output = finish(process, 4, seconds=30)
    assert "Worker 2 of 2 was ended by SIGKILL" in output
    assert "Traceback" not in output


LOSSY = {**SLOW, "train": {**SLOW["train"], "epochs": 4}}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run that those below, which lose workers on the way, have to end like."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    train(LOSSY, folder)
    return folder


def two_others(process, before):
    return len(workers_of(process)) == 2 and not set(workers_of(process)) & set(before)


def has_reached(folder, step):
    return max(checkpoint_names(folder), default="step-00000000") >= f"step-{step:08d}"


@pytest.mark.parametrize("first", [0, 1])
def test_a_run_that_loses_workers_restarts_by_itself_and_ends_with_the_same_weights(first, undisturbed, tmp_path):
    """Worker 1 and worker 2 take turns in being killed, five times, at random steps: 0 is before any checkpoint."""
    luck = random.Random(first)
    last = int(max(checkpoint_names(undisturbed)).removeprefix("step-"))
    with launch(LOSSY, tmp_path / "run", 2, "--max-restarts", "5") as process:
        before: list[int] = []
        for turn, step in enumerate([first, *sorted(luck.sample(range(2, last), 4))], start=first):
            wait_for(partial(two_others, process, before))
            wait_for(partial(has_reached, tmp_path / "run", step))
            time.sleep(luck.uniform(0, 0.05))
            before = workers_of(process)
            os.kill(before[turn % 2], signal.SIGKILL)
        finish(process)
    assert same(undisturbed, tmp_path / "run")


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_whole(undisturbed, tmp_path):
    """The second worker cannot write its group; the run goes on when there is room again."""
    with launch(LOSSY, tmp_path / "run", 2) as process:
        wait_for(lambda: checkpoint_names(tmp_path / "run"))
        resource.prlimit(workers_of(process)[1], resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
        output = finish(process, 2)
    assert "Could not write the checkpoint" in output and "make room" in output and "Traceback" not in output
    assert checkpoint_names(tmp_path / "run") and not list((tmp_path / "run" / "checkpoints").glob(".*"))
    resume(tmp_path / "run", 2)
    assert same(undisturbed, tmp_path / "run")


def test_what_one_worker_says_is_said_once(tmp_path):
    diverging = {**RESNET, "groups": {"name": "sgd", "lr": 1e30}}
    with launch(diverging, tmp_path / "run", 2) as process:
        output = finish(process, 2)
    assert "became" in output and "Traceback" not in output


def test_more_workers_than_groups_are_refused(tmp_path):
    assert "at most as many workers as layer groups, 4, got 5" in refusal(RESNET, tmp_path / "run", 5)


def test_replicas_follow_one_process_on_the_joint_minibatch(tmp_path):
    for form, accumulate in (("per-sample", 2), ("scalar", 1)):
        recipe = {**MLP, "rule": {"form": form}, "data": {"name": "digits", "batch_size": 255, "mixup": 0.4}}
        recipe["train"] = {**MLP["train"], "accumulate": accumulate}
        train(recipe, tmp_path / f"{form}-1")
        train(recipe, tmp_path / f"{form}-4", workers=2, replicas=2)
        close_to(tmp_path / f"{form}-1", tmp_path / f"{form}-4")


def test_replicas_of_a_language_model_go_on_with_the_hidden_state_of_their_own_rows(tmp_path):
    recipe = {**LSTM, "cut": {"groups": 2}, "model": {**LSTM["model"], "layers": 2}}
    recipe["data"] = {**LSTM["data"], "batch_size": 63, "sequence_length": 20}  # 32 rows, and 31
    recipe["train"] = {**LSTM["train"], "checkpoint_minutes": 1e-9}
    train(recipe, tmp_path / "whole", replicas=2)
    with start_training(recipe, tmp_path / "cut", replicas=2) as ranks:
        wait_for(lambda: checkpoint_names(tmp_path / "cut"))
        ranks.signal(signal.SIGINT)
        ranks.finish(130)
    resume(tmp_path / "cut", replicas=2)
    assert same(tmp_path / "whole", tmp_path / "cut")


def test_a_cut_by_memory_of_one_worker_goes_on_with_two(tmp_path):
    recipe = {**SLOW, "cut": {"groups": 3, "by": "memory"}, "model": {"name": "resnet", "depth": 8, "width": 4}}
    recipe["train"] = {"epochs": 3, "checkpoint_minutes": 1e-9}
    with start_training(recipe, tmp_path / "cut") as ranks:
        wait_for(lambda: checkpoint_names(tmp_path / "cut"))
        ranks.signal(signal.SIGINT)
        ranks.finish(130)
    assert len(run_folder.read(tmp_path / "cut")[0].cut.places) == 2
    resume(tmp_path / "cut", 2)


def test_a_process_without_a_gpu_of_its_own_is_told_so(monkeypatch):
    for name, value in (("WORLD_SIZE", "2"), ("RANK", "1"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(RecipeError, match="a GPU for each process on this machine, got 1 for 2"):
        join_team(2, 1, torch.device("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of CUDA")
@pytest.mark.parametrize("replicas", [1, 2])
def test_processes_that_share_a_gpu_end_like_one(replicas, tmp_path):
    recipe = {**MLP, "train": {"epochs": 1, "device": "cuda:0", "precision": "float32"}}
    train(recipe, tmp_path / "1")
    train(recipe, tmp_path / "2", 2 // replicas, replicas=replicas)
    close_to(tmp_path / "1", tmp_path / "2", 2e-3)


def test_synchronised_batch_norm_makes_replicas_one_on_networks_with_batch_norm(tmp_path):
    recipe = {**RESNET, "train": {"epochs": 1, "sync_batch_norm": True}, "cut": {"groups": 2}}
    recipe["model"] = {**RESNET["model"], "dropout": 0.0}  # replicas drop other units
    train(recipe, tmp_path / "1")
    train(recipe, tmp_path / "2", replicas=2)
    close_to(tmp_path / "1", tmp_path / "2", 2e-3)


def close_to(a, b, tolerance=1e-4):
    (weights_a, metrics_a), (weights_b, metrics_b) = outcome(a), outcome(b)
    for name, value in weights_a.items():
        torch.testing.assert_close(value, weights_b[name], rtol=tolerance, atol=tolerance, msg=name)
    for line_a, line_b in zip(metrics_a, metrics_b, strict=True):
        assert line_a["train"]["loss"] == pytest.approx(line_b["train"]["loss"], rel=1e-3)
