"""Alarms about a run that goes wrong: which numbers of an epoch ring which, and that a run says each once."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from anytime_lct.data import datasets
from anytime_lct.evaluation import Tally
from anytime_lct.recipes import reading
from anytime_lct.training import alarms
from anytime_lct.training.alarms import Finished, raised
from anytime_lct.training.events import Epoch, Note
from anytime_lct.training.run import train

GUESS = math.log(10)
WELL = Finished(
    epoch=3, epochs=9, task="classification", outputs=10, train_losses=[1.2, 0.9, 0.8], losses=[1.3, 1.0, 1.0],
    scores=[0.6, 0.65, 0.7], errors=[0.02, 0.02, 0.02], answers=[0.15, 0.12, 0.11], labels=[50] * 10,
)  # fmt: skip
# Three symbols of frequencies 1/2, 1/4, 1/4: 1.5 bits.
TEXT = replace(
    WELL, task="language-model", outputs=3, train_losses=[0.9, 0.9, 0.8], losses=[0.9, 0.9, 0.9],
    scores=[1.4, 1.3, 1.2], labels=[200, 100, 100], answers=[0.6, 0.6, 0.5], samples="characters",
)  # fmt: skip


ALONE = replace(WELL, losses=(), scores=(), errors=(), answers=(), labels=())  # without a validation split


@pytest.mark.parametrize("numbers", [WELL, TEXT, ALONE, replace(WELL, epoch=9)])
def test_nothing_rings_where_all_is_well(numbers):
    assert raised(numbers) == {} and alarms.far_apart(numbers) == []


@pytest.mark.parametrize(
    ("numbers", "name", "says"),
    [
        (
            replace(WELL, epoch=1, train_losses=[3.4, 9.32, 16.5]),
            "loss",
            "After epoch 1 the training loss of exit 2 and the main network (9.32, 16.5) is far above 2.30, that of "
            "guessing among 10 classes: try a tenth of groups.lr and of critics.lr, or set train.clip_norm=1.",
        ),
        (replace(WELL, train_losses=[4.0, 1.0, 1.0], clips=True), "loss", "tenth of groups.lr and of critics.lr."),
        (replace(WELL, train_losses=[4.0, 1.0, 1.0], scores=[0.1] * 3), "chance", ""),  # of course
        (replace(WELL, train_losses=[4.0, 1.0, 1.0], answers=[1.0, 0.1, 0.1]), "answer", ""),
        (replace(WELL, train_losses=[2.3, 2.3, 3.4]), "loss", ""),  # less than half above it
        (replace(WELL, epoch=2, train_losses=[2.3, 2.3, 4.5]), "loss", ""),  # less than twice, and early
        (
            replace(WELL, answers=[1.0, 0.995, 0.5], train_losses=[2.0, 1.7, 0.1], rates=["critics.lr"]),
            "answer",
            "After epoch 3 exit 1 and exit 2 answer one class for all images of validation, the largest class being "
            "10% of them: try a tenth of critics.lr, or train for more epochs.",
        ),
        (
            replace(WELL, answers=[0.1, 0.1, 1.0]),
            "answer",
            "After epoch 3 the main network answers one class for all images of validation, though the training loss "
            "is far lower than such answers give: the statistics of batch norms may not follow yet; train for more "
            "epochs, or in smaller minibatches (data.batch_size).",
        ),
        (
            replace(WELL, answers=[1.0] * 3, labels=[910] + [10] * 9),
            "answer",
            "the largest class being 91% of them: use more images of other classes, or train for more epochs.",
        ),
        (replace(WELL, epoch=1, answers=[1.0] * 3), "answer", ""),  # too early
        (replace(WELL, epoch=1, epochs=1, answers=[1.0] * 3, train_losses=[2.2] * 3), "answer", "answer one class"),
        (replace(WELL, answers=[1.0] * 3, labels=[500] + [0] * 9), "answer", ""),  # so do the labels
        (replace(TEXT, answers=[0.5, 0.5, 1.0], train_losses=[1.0] * 3), "answer", "the most frequent symbol being"),
        (
            replace(WELL, scores=[0.12, 0.65, 0.7]),
            "chance",
            "After epoch 3 exit 1 is no better than chance on validation (12.0%, where the largest class is 10.0%): "
            "cut later (cut.shares), or try a tenth of groups.lr and of critics.lr.",
        ),
        (replace(WELL, scores=[0.14, 0.65, 0.7]), "chance", ""),  # more than chance explains
        (
            replace(WELL, scores=[0.12, 0.11, 0.09]),
            "chance",
            "(12.0%, 11.0%, 9.0%, where the largest class is 10.0%): check that labels belong to their images",
        ),
        (
            replace(WELL, scores=[0.12, 0.11, 0.09], answers=[0.2, 1.0, 0.2]),
            "chance",
            "exit 1 and the main network are no better than chance on validation (12.0%, 9.0%, where the largest class "
            "is 10.0%): check",
        ),
        (replace(WELL, scores=[0.12, 0.11, 0.09], epoch=2), "chance", ""),
        (replace(WELL, scores=[0.12, 0.65, 0.7], epoch=4, epochs=20), "chance", ""),  # exits of a long run learn late
        (replace(WELL, scores=[0.12, 0.65, 0.7], epoch=5, epochs=90), "chance", "exit 1 is no better than chance"),
        (replace(WELL, scores=[0.12, 0.11, 0.09], labels=[4] * 10), "chance", ""),  # nothing can be told of 40 images
        (replace(WELL, scores=[0.1] * 3, answers=[1.0] * 3), "chance", ""),  # said already
        (
            replace(TEXT, scores=[1.49, 1.3, 1.2]),
            "chance",
            "exit 1 is no better than chance on validation (1.49 bits, where the frequencies of symbols alone give "
            "1.50 bits)",
        ),
        (
            replace(WELL, epoch=9, scores=[0.8, 0.9, 0.9], labels=[1] * 10),
            "samples",
            "The validation split is too small to choose an exit by: 10 images, whose accuracy is known to ± 24 "
            "points, while exits are 10.0 points apart; use more data, or more of it for validation (data.validation).",
        ),
        (replace(WELL, epoch=9, scores=[0.8, 0.9, 0.9], labels=[1000] * 10), "samples", ""),
        (replace(WELL, epoch=9, scores=[0.2, 0.9, 0.9], labels=[1] * 10), "samples", ""),  # far apart
        (replace(WELL, epoch=9, scores=[0.1] * 3, labels=[1] * 10, answers=[1.0] * 3), "samples", ""),
        (replace(WELL, epoch=8, scores=[0.8, 0.9, 0.9], labels=[1] * 10), "samples", ""),  # not the last epoch
        (replace(TEXT, epoch=9, errors=[0.2] * 3), "samples", "400 characters, known to ± 0.39 bits, while exits are"),
    ],
)  # fmt: skip
def test_what_goes_wrong_is_said(numbers, name, says):
    line = raised(numbers).get(name, "")
    assert says in line and bool(says) == bool(line)
    assert name not in raised(numbers, known=[name])


def test_training_and_validation_far_apart_have_one_of_two_reasons():
    numbers = replace(WELL, epoch=5, train_losses=[0.5, 0.4, 0.1], losses=[0.9, 1.9, 1.2])
    assert alarms.far_apart(numbers) == [1, 2] and alarms.far_apart(replace(numbers, epoch=4)) == []
    assert alarms.far_apart(replace(numbers, answers=[0.1, 1.0, 0.1])) == [2]
    start = (
        "After epoch 5 the validation loss of exit 2 and the main network (1.9, 1.2) is far above the training loss "
        "(0.4, 0.1)"
    )
    line = alarms.why_far_apart(numbers, [1, 2], [9.0, 0.5, 0.2])
    assert line.startswith(f"{start}, but not on training data in evaluation mode (0.5, 0.2): it overfits;")
    line = alarms.why_far_apart(numbers, [1, 2], [0.0, 1.8, 1.1])
    assert line.startswith(f"{start}, and so it is on training data in evaluation mode (1.8, 1.1): the statistics of ")
    assert alarms.why_far_apart(numbers, [1, 2], []).startswith(f"{start}: if it overfits, use more data")


def test_a_tally_by_hand():
    tally = Tally("classification", 2)
    y = torch.tensor([0, 1, 1])
    tally.add(0, torch.tensor([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]]), y)
    tally.add(1, torch.tensor([[9.0, 0.0], [9.0, 0.0], [9.0, 0.0]]), y)
    tally.add(0, torch.tensor([[0.0, 9.0]]), y[:1])
    tally.add(1, torch.tensor([[9.0, 0.0]]), y[:1])
    (_, scores, errors, answers) = tally.results().tolist()
    assert scores == [0.5, 0.5] and answers == [0.5, 1.0] and errors == [0.25, 0.25]
    assert Tally("classification", 0).results().shape == (4, 0)


@pytest.fixture
def hopeless(tmp_path):
    """A run with a learning rate far too large, that is interrupted in its second epoch and resumed."""
    tables = {"train.epochs": 3, "model.name": "mlp", "model.hidden": [8, 8], "groups.lr": 30.0, "cut.groups": 3}
    recipe = reading.read(None, {**tables, "groups_schedule.name": "constant", "train.clip_norm": 1.0})
    data = datasets.from_recipe(recipe)
    events = []
    for event in train(recipe, data, tmp_path):
        events.append(event)
        if isinstance(event, Epoch):
            break
    return events + list(train(recipe, data, tmp_path, resume=True)), tmp_path


def test_a_run_says_each_once_and_writes_it_down(hopeless):
    events, folder = hopeless
    first = next(k for k, event in enumerate(events) if isinstance(event, Epoch))
    epochs = [event for event in events if isinstance(event, Epoch)]
    warnings = [line for epoch in epochs for line in epoch.warnings]
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3]
    notes = [event.text for event in events[first:] if isinstance(event, Note)]
    assert notes == [line for epoch in epochs[1:] for line in epoch.warnings] and notes
    assert epochs[0].warnings[0].startswith("After epoch 1 the training loss of exit")
    assert sum("the training loss of" in line and "guessing" in line for line in warnings) == 1
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [tuple(line.get("warnings", ())) for line in lines] == [epoch.warnings for epoch in epochs]
    assert Epoch.from_json(lines[0]).warnings == epochs[0].warnings
