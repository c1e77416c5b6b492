"""Loggers: the numbers of a run in JSON lines, MLflow and W&B, each step once; one that fails ends alone."""

from __future__ import annotations

import json
import warnings

import pytest
from training_processes import wait_for

from anytime_lct.errors import RecipeError
from anytime_lct.recipes import reading
from anytime_lct.run_folder import journal
from anytime_lct.training import logs
from anytime_lct.training.logs import Logs, Point


def logged(run, name: str, *steps: int) -> None:
    """Log points of these steps by one logger, as a process of a run does."""
    recipe = reading.complete({"train": {"epochs": 1, "log": [name]}})
    log = Logs(run, recipe)
    for step in steps:
        log.write(Point("steps", step, {"loss/step/exit_1": step / 10}))
    log.write(Point("epochs", steps[-1], {"accuracy/validation/exit_1": 0.5}, 1))
    log.close()
    assert not log.sentences()


def test_json_lines_lose_the_steps_that_run_again(tmp_path):
    logged(tmp_path, "jsonl", 10, 20, 30)
    logged(tmp_path, "jsonl", 25, 40)
    lines = journal.read(tmp_path / "log.jsonl")
    assert [(line["step"], line["axis"]) for line in lines] == [
        (10, "steps"), (20, "steps"), (25, "steps"), (40, "steps"), (40, "epochs"),
    ]  # fmt: skip
    assert lines[0]["values"] == {"loss/step/exit_1": 1.0}


def test_mlflow_is_told_every_step_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "store").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logged(tmp_path, "mlflow", 10, 20, 30)
        logged(tmp_path, "mlflow", 25, 30, 40)
        from mlflow.tracking import MlflowClient

        client = MlflowClient()
        (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
        history = client.get_metric_history(run.info.run_id, "loss/step/exit_1")
    assert [(metric.step, metric.value) for metric in history] == [(10, 1.0), (20, 2.0), (30, 3.0), (40, 4.0)]
    assert (run.data.params["train.epochs"], run.info.status) == ("1", "FINISHED")


def test_wandb_has_every_step_once_in_its_offline_mode(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (tmp_path / "wandb.json").write_text('{"id": "earlier", "step": 20}')
        logged(tmp_path, "wandb", 15, 20, 30)
        from wandb.proto.wandb_internal_pb2 import Record

        wait_for(lambda: [*tmp_path.rglob("run-earlier.wandb")])  # its own process writes it
        (file,) = tmp_path.rglob("run-earlier.wandb")
        content, history = file.read_bytes()[7:], []  # behind the head of the file
        while content:
            length = int.from_bytes(content[4:6], "little")  # a sum of 4 bytes, the length, a type of one byte
            record = Record.FromString(content[7 : 7 + length])
            history += [record.history] if record.HasField("history") else []
            content = content[7 + length :]
    (line,) = history
    values = {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in line.item}
    assert (line.step.num, values["loss/step/exit_1"], values["accuracy/validation/exit_1"]) == (30, 3.0, 0.5)


def test_a_logger_that_fails_is_left_out_with_a_sentence(tmp_path, monkeypatch):
    class Full:
        def write(self, point: Point) -> None:
            raise OSError("No space left on device")

        def close(self) -> None:
            raise AssertionError("it has ended")

    def missing(*_: object) -> logs.Log:
        raise ModuleNotFoundError("No module named 'mlflow'")

    monkeypatch.setitem(logs.LOGS, "mlflow", missing)
    log = Logs(tmp_path, reading.complete({"train": {"epochs": 1, "log": ["jsonl", "mlflow"]}}), [Full()])
    for step in (1, 2):
        log.write(Point("steps", step, {"a": 1.0}))
    assert log.sentences() == [
        "Warning: mlflow logs nothing from here on: No module named 'mlflow'; install it, in a checkout of "
        "anytime-lct, with: pip install '.[mlflow]'. Training goes on.",
        "Warning: Full logs nothing from here on: No space left on device. Training goes on.",
    ]
    log.close()
    assert len(journal.read(tmp_path / "log.jsonl")) == 2 and not log.sentences()


def test_a_logger_whose_package_is_missing_is_refused_before_training(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"the logger wandb .* pip install '\.\[wandb\]'"):
        logs.expect_installed(("jsonl", "wandb"))


def test_several_loggers_are_named_by_a_key():
    assert reading.assignment("train.log=jsonl,mlflow") == ("train.log", ["jsonl", "mlflow"])
