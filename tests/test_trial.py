"""A long training tries the export to ONNX at its beginning, once, and ends with the weights that it has without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from anytime_lct import verbs
from anytime_lct.errors import ExportError
from anytime_lct.exits.profile import weights_sum
from anytime_lct.export import write
from anytime_lct.recipes import reading
from anytime_lct.task import Facts
from anytime_lct.training.events import Event, Note, Progress, Start
from anytime_lct.verbs import trial

RECIPE = {"model": {"name": "mlp", "hidden": [4]}, "cut": {"groups": 2}, "train": {"epochs": 1}}
START = Start(Facts("digits", "classification", (1, 8, 8), 10, tuple("0123456789")), ("relu1",))


def events_at(clock: SimpleNamespace, *steps: tuple[float, int]) -> Iterator[Event]:
    """Yield a Start at 0 and progress at these times, each with the number of steps of 1,000 until then."""
    clock.now = 0.0
    yield START
    for clock.now, number in steps:
        yield Progress(1 + number // 100, 10, number % 100, 100, (1.0,))


@pytest.mark.parametrize(
    ("steps", "method", "tries"),
    [
        (((1.0, 1), (2.0, 2), (20.0, 100)), "lct", 0),  # 1,000 s by the first step, 200 s in truth
        (((1.0, 1), (11.0, 12), (500.0, 500)), "lct", 1),
        (((1.0, 1), (11.0, 12)), "bp", 0),  # has no exits
        (((100.0, 112), (990.0, 999)), "lct", 0),
    ],
)
def test_the_export_is_tried_once_where_a_training_takes_long(monkeypatch, steps, method, tries):
    clock, networks = SimpleNamespace(now=0.0), list[object]()
    monkeypatch.setattr(trial, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(write, "try_export", lambda network, facts: networks.append(network))
    recipe = reading.complete(RECIPE | {"train": {"epochs": 1, "method": method}})
    events = list(trial.with_trial(events_at(clock, *steps), recipe))
    notes = [event.text for event in events if isinstance(event, Note)]
    assert len(networks) == len(notes) == tries and len(events) == 1 + len(steps) + tries
    assert all("The export to ONNX works" in note for note in notes)


def test_what_cannot_be_exported_is_a_warning(monkeypatch):
    def fail(network: object, facts: object) -> float:
        raise ExportError("Layer group 2 cannot be exported to ONNX: no symbol for aten::bad.")

    monkeypatch.setattr(write, "try_export", fail)
    note = trial.try_export(reading.complete(RECIPE), START)
    assert note.startswith("Warning: ") and "no symbol for aten::bad. Training goes on" in note


def test_a_trial_changes_no_weight(monkeypatch, tmp_path: Path):
    texts, sums = list[list[str]](), set[str]()
    for seconds in (trial.LONG, 0.0):
        monkeypatch.setattr(trial, "LONG", seconds)
        monkeypatch.setattr(trial, "FIRST_STEPS", seconds)
        notes = list[str]()
        run = tmp_path / f"run-{seconds}"
        verbs.train(
            reading.complete(RECIPE), run, report=lambda e, n=notes: n.append(e.text) if isinstance(e, Note) else None
        )
        texts.append(notes)
        sums.add(weights_sum(run))
    trials = [[text for text in notes if "ONNX works" in text] for notes in texts]
    assert len(sums) == 1 and not trials[0] and len(trials[1]) == 1
