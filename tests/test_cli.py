"""The program as a user runs it: versions, missing extras, interruption, the whole way, and the options it promises."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import typer
from forked_python import python
from programs import run, start

from anytime_lct import __version__
from anytime_lct.cli import main
from anytime_lct.cli.main import VERBS, app

MODULE = ["-m", "anytime_lct.cli.main"]
WITHOUT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
from anytime_lct.cli.main import run
run({arguments})
"""
OPTIONS = {
    "doctor": "--json",
    "quickstart": "--epochs --folder --force --json",
    "train": (
        "--budget-flops --data --data-root --epochs --groups --json --log --max-restarts --method --model --objective "
        "--recipe --replicas --resume --run-dir --seed --set --sweep --trials --weights --workers"
    ),
    "recipe": "--data --explain --json --method --model --recipe --set",
    "inspect": "--budget-flops --classes --critic --export --groups --input --json --places --set --tokens",
    "analyze": "--data-root --html --json --model",
    "thresholds": "--data-root --json --mean-flops --measure --model",
    "export": "--calibration-samples --data-root --exits --force --int8 --json --model --only --out --single-file",
    "select": (
        "--budget-flops --budget-latency --budget-params --json --max-bpc --max-drop --max-rmse --min-accuracy "
        "--within-noise"
    ),
    "reproduce": "--data-root --jobs --json --only --out --report --resume --runs --scale --seeds",
    "calibrate": "--json --provider --seconds --sizes --threads",
    "predict": (
        "--budget-flops --budget-latency --budget-params --context --exit --fixed --format --generate --json "
        "--mean-flops --measure --min-confidence --prompt --provider --seed --stream --temperature --text --threads "
        "--timeout --top"
    ),
    "serve": (
        "--access-log --allow-admin --allow-host --api-key-file --batch --cores --cors-origin --deadline --fixed "
        "--host --json --keyless --max-body --port --provider --root-path --tls-cert --tls-key --unix-socket --workers"
    ),
}


def call(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, in a process that has torch imported already."""
    return run([python(), *MODULE, *arguments], seconds=280, cwd=cwd)


def call_anew(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, in a new process."""
    return run([sys.executable, *MODULE, *arguments], seconds=280)


def without(blocked: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    code = WITHOUT.format(blocked=blocked, arguments=list(arguments))
    return run([sys.executable, "-c", code], seconds=60)


def test_the_version_is_the_packages():
    assert call_anew("--version").stdout.strip() == __version__


@pytest.mark.parametrize("verb", VERBS)
def test_the_options_are_those_promised(verb):
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    options = {name for p in command.params for name in p.opts if name.startswith("--")}
    assert sorted(options) == OPTIONS[verb].split()


@pytest.mark.parametrize("arguments", ["serve x --cores 0", "select --nonsense", "slect", "export x"])
def test_a_wrong_use_is_printed_as_json_too(arguments, capsys):
    for more in ([], ["--json"]):
        with pytest.raises(SystemExit) as end:
            main.run([*arguments.split(), *more])
        captured = capsys.readouterr()
        assert end.value.code == 2 and "Error" in captured.err
        assert bool(more) == bool(captured.out)
    assert json.loads(captured.out)["exit_code"] == 2 and len(json.loads(captured.out)["error"]) > 20


@pytest.mark.parametrize(
    ("package", "extra", "arguments"),
    [
        ("torch", "train", ("train",)),
        ("torch", "train", ("analyze", "x")),
        ("torch", "train", ("quickstart",)),
        ("torch", "train", ("export", "x", "--out", "y")),
        ("starlette", "serve", ("serve", "x")),
        ("datasets", "datasets", ("train", "--data", "hf:.", "--set", "data.image_size=8")),
    ],
)
def test_a_missing_extra_is_named(package, extra, arguments, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = without({package}, *arguments)
    assert program.returncode == 2
    assert (
        program.stderr.split()
        == (
            f"This command needs the package '{package}', which is not installed; install it, in a "
            f"checkout of anytime-lct, with: pip install '.[{extra}]'"
        ).split()
    )
    assert not list(tmp_path.iterdir())


def test_doctor_names_what_a_verb_needs_in_a_base_installation(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    program = without({"torch", "starlette", "datasets"}, "doctor")
    assert program.returncode == 0, program.stderr
    lines = program.stdout.splitlines()
    assert max(map(len, lines)) <= 80 and "GPU:          not known without torch" in lines
    words = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    assert words["select"] == ["yes"]
    assert words["train"] and "analyze     no     pip install '.[train]' (torch missing)" in program.stdout
    assert "serve       no     pip install '.[serve]' (starlette missing)" in program.stdout
    assert "hf:PATH         no     pip install '.[datasets]' (datasets missing)" in program.stdout


def test_the_whole_way_then_answers_where_nothing_that_trains_is_installed(tmp_path):
    quickstart = call_anew("quickstart", "--folder", tmp_path / "demo", "--epochs", "2", "--json")
    assert quickstart.returncode == 0, quickstart.stderr
    summary = json.loads(quickstart.stdout)
    flops = [answer["budget_flops"] for answer in summary["answers"]]
    assert flops == sorted(flops)
    assert len(flops) == 4
    exits = {exit_["index"]: exit_["test"]["value"] for exit_ in summary["profile"]["exits"]}
    for answer in summary["answers"]:
        assert answer["accuracy"] == pytest.approx(exits[answer["exit"]], abs=1 / 360 + 1e-9)
    assert (tmp_path / "demo" / "run" / "exits.png").read_bytes().startswith(b"\x89PNG")
    again = call("quickstart", "--folder", tmp_path / "demo", "--epochs", "2")
    assert again.returncode == 2
    assert "--force" in again.stderr

    blocked = {"torch", "torchvision", "fvcore", "onnx", "onnxscript", "sklearn", "scipy", "matplotlib", "safetensors"}
    bundle = str(tmp_path / "demo" / "bundle")
    selection = without(blocked, "select", bundle, "--budget-flops", str(flops[0]), "--json")
    assert selection.returncode == 0, selection.stderr
    prediction = without(blocked, "predict", bundle, str(tmp_path / "demo" / "run" / "exits.png"), "--json")
    assert prediction.returncode == 0, prediction.stderr


def test_ctrl_c_writes_a_checkpoint_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "run"
    options = "--set model.depth=8 --set model.width=4 --groups 2 --epochs 200 --run-dir".split()
    with start([python(), *MODULE, "train", *options, folder], stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 120
        while not (folder / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"--resume --run-dir {folder}" in errors
    assert "Traceback" not in errors
    assert any(Path(folder / "checkpoints").glob("step-*"))


def test_compiled_training_runs(tmp_path):
    options = "--model mlp --set model.hidden=16,8 --groups 2 --epochs 1 --set train.compile=true --json --run-dir"
    program = call_anew("train", *options.split(), tmp_path / "run")
    assert program.returncode == 0, program.stderr
    assert json.loads(program.stdout)["last_epoch"]["epoch"] == 1


def test_an_interrupt_waits_until_an_import_is_over(tmp_path):
    (tmp_path / "slow.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsum(range(1000))\nprint('imported')\n"
    )
    program = textwrap.dedent(f"""
        import sys
        from anytime_lct.cli import entry

        sys.path.insert(0, {str(tmp_path)!r})
        entry.let_imports_end()
        try:
            import slow
            print("too far")
        except KeyboardInterrupt:
            print("interrupted")
    """)
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert output.split() == ["imported", "interrupted"]
