"""What a user can get wrong: each gives one sentence on stderr, the right exit code, and changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anytime_lct.cli.main import run as program
from anytime_lct.exits.profile import Profile

TINY = (
    "--model resnet --groups 2 --epochs 1 --set model.depth=8 --set model.width=4 --set data.batch_size=512 "
    "--set train.device=cpu"
).split()


def call(*arguments: object) -> int:
    """Run the program in this process; return its exit code."""
    try:
        program([str(argument) for argument in arguments])
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run, its bundle, a text run that is not trained, and inputs good and bad."""
    root = tmp_path_factory.mktemp("folder")
    assert call("train", "--run-dir", root / "run", *TINY) == 0
    assert call("analyze", root / "run") == 0
    assert call("export", root / "run", "--out", root / "bundle") == 0
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(root / "good.png")
    (root / "text.png").write_text("no image at all")
    (root / "empty.npy").write_bytes(b"")
    np.save(root / "nan.npy", np.full((1, 1, 8, 8), np.nan, np.float32))
    np.save(root / "shape.npy", np.zeros((1, 3, 8, 8), np.float32))
    np.save(root / "none.npy", np.zeros((0, 1, 8, 8), np.float32))
    np.save(root / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(root / "words.npy", np.array(["a"]))
    (root / "broken.toml").write_text("[train\nepochs = 1")
    (root / "unknown.toml").write_text("[train]\nepoch = 1")
    (root / "tied.toml").write_text('[cut]\nplaces = ["layer2", "layer1"]')
    return root


def altered(root: Path, folder: str, file: str, change) -> Path:
    """Copy a run or bundle and damage one file of the copy; return the copy."""
    copy = root / f"altered-{folder}"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(root / folder, copy)
    (path,) = sorted(copy.glob(file))[-1:]
    change(path)
    return copy


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def newer(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))


def escaping(path: Path) -> None:
    manifest = json.loads(path.read_text())
    manifest["profile"]["name"] = "../profile.json"
    path.write_text(json.dumps(manifest))


CASES = {
    # recipes and flags
    "recipe missing": (lambda m: ["train", "--recipe", m / "no.toml"], 2, "shipped recipes"),
    "recipe no TOML": (lambda m: ["train", "--recipe", m / "broken.toml"], 2, "does not parse"),
    "recipe unknown key": (lambda m: ["train", "--recipe", m / "unknown.toml"], 2, "did you mean epochs"),
    "recipe places": (lambda m: ["train", "--recipe", m / "tied.toml", "--run-dir", m / "x"], 2, "order of execution"),
    "setting without value": (lambda m: ["train", "--set", "epochs"], 2, "key=value"),
    "setting without section": (lambda m: ["train", "--set", "epochs=3"], 2, "train.epochs=10"),
    "epochs 0": (lambda m: ["train", "--epochs", "0"], 2, "train.epochs"),
    "learning rate nan": (lambda m: ["train", "--set", "groups.lr=nan"], 2, "groups.lr"),
    "unknown data": (lambda m: ["train", "--data", "cifar"], 2, "There is no data set 'cifar'; did you mean cifar10"),
    "missing data": (
        lambda m: ["train", "--data", "cifar10", "--data-root", m, "--run-dir", m / "x"],
        2,
        "data.download=true",
    ),
    "missing text": (lambda m: ["train", "--data", "text", "--run-dir", m / "x"], 2, "data.path"),
    "unknown model": (lambda m: ["train", "--model", "resnet5", "--run-dir", m / "x"], 2, "did you mean"),
    "unknown option": (lambda m: ["train", "--set", "model.wide=3", "--run-dir", m / "x"], 2, "no option 'wide'"),
    "too many groups": (lambda m: ["train", "--groups", "99", "--run-dir", m / "x"], 2, "99"),
    "unknown place": (lambda m: ["train", "--set", "cut.places=layer9", "--run-dir", m / "x"], 2, "layer9"),
    "no such device": (lambda m: ["train", "--set", "train.device=abacus", "--run-dir", m / "x"], 2, "abacus"),
    "divergence": (
        lambda m: ["train", "--run-dir", m / "diverged", *TINY, "--set", "groups.lr=1e30"],
        2,
        "exit 1 became",
    ),
    "run exists": (lambda m: ["train", "--run-dir", m / "run"], 2, "--resume"),
    "restarts of one process": (lambda m: ["train", "--run-dir", m / "x", "--max-restarts", "2"], 2, "--workers"),
    "resume nothing": (lambda m: ["train", "--resume", "--run-dir", m / "none"], 2, "no recipe.toml"),
    "resume with settings": (
        lambda m: ["train", "--resume", "--run-dir", m / "run", "--groups", "9"],
        2,
        "its own recipe",
    ),
    # damaged runs
    "checkpoint cut": (
        lambda m: ["train", "--resume", "--run-dir", altered(m, "run", "checkpoints/*/group_1.*", cut_short)],
        2,
        "damaged",
    ),
    "weights altered": (lambda m: ["analyze", altered(m, "run", "main.safetensors", cut_short)], 2, "main.safetensors"),
    "weights missing": (
        lambda m: ["analyze", altered(m, "run", "critics.safetensors", Path.unlink)],
        2,
        "no weights yet",
    ),
    "not a run": (lambda m: ["analyze", m], 2, "run folder"),
    "profile cut": (
        lambda m: ["select", altered(m, "run", "profile.json", cut_short), "--budget-flops", "1M"],
        2,
        "profile",
    ),
    # selection and export
    "samples without int8": (
        lambda m: ["export", m / "run", "--out", m / "x", "--calibration-samples", "9"],
        2,
        "Expected --int8",
    ),
    "measure alone": (
        lambda m: ["predict", m / "bundle", m / "good.png", "--measure", "margin"],
        2,
        "Expected --min-confidence",
    ),
    "budget no number": (lambda m: ["select", m / "run", "--budget-flops", "lots"], 2, "lots"),
    "budget negative": (lambda m: ["select", m / "run", "--budget-flops=-3M"], 2, "-3M"),
    "nothing fits": (lambda m: ["select", m / "run", "--budget-flops", "10"], 3, "exit"),
    "wrong metric": (lambda m: ["select", m / "run", "--max-bpc", "2"], 2, "accuracy"),
    "export exists": (lambda m: ["export", m / "run", "--out", m / "bundle"], 2, "--force"),
    "export no such exit": (lambda m: ["export", m / "run", "--out", m / "x", "--exits", "7"], 2, "7"),
    "export no numbers": (lambda m: ["export", m / "run", "--out", m / "x", "--exits", "a"], 2, "1,3"),
    "export without profile": (
        lambda m: ["export", altered(m, "run", "profile.json", Path.unlink), "--out", m / "x"],
        2,
        "analyze",
    ),
    # damaged bundles
    "not a bundle": (lambda m: ["predict", m / "run", m / "good.png"], 2, "manifest.json"),
    "bundle cut": (
        lambda m: ["predict", altered(m, "bundle", "group_1.onnx", cut_short), m / "good.png"],
        2,
        "group_1.onnx",
    ),
    "bundle altered": (
        lambda m: ["predict", altered(m, "bundle", "exit_2.onnx", flip), m / "good.png"],
        2,
        "exit_2.onnx",
    ),
    "bundle file missing": (
        lambda m: ["predict", altered(m, "bundle", "critic_1.onnx", Path.unlink), m / "good.png"],
        2,
        "critic_1.onnx",
    ),
    "bundle manifest cut": (
        lambda m: ["predict", altered(m, "bundle", "manifest.json", cut_short), m / "good.png"],
        2,
        "manifest",
    ),
    "bundle newer": (lambda m: ["predict", altered(m, "bundle", "manifest.json", newer), m / "good.png"], 2, "99"),
    "bundle escaping": (
        lambda m: ["predict", altered(m, "bundle", "manifest.json", escaping), m / "good.png"],
        2,
        "manifest",
    ),
    # inputs
    "image missing": (lambda m: ["predict", m / "bundle", m / "no.png"], 2, "no.png"),
    "image no image": (lambda m: ["predict", m / "bundle", m / "text.png"], 2, "text.png"),
    "array empty": (lambda m: ["predict", m / "bundle", m / "empty.npy"], 2, "empty.npy"),
    "array NaN": (lambda m: ["predict", m / "bundle", m / "nan.npy"], 2, "nan.npy"),
    "array of another shape": (lambda m: ["predict", m / "bundle", m / "shape.npy"], 2, "shape.npy"),
    "array without samples": (lambda m: ["predict", m / "bundle", m / "none.npy"], 2, "none.npy"),
    "array of objects": (lambda m: ["predict", m / "bundle", m / "objects.npy"], 2, "objects.npy"),
    "array of words": (lambda m: ["predict", m / "bundle", m / "words.npy"], 2, "words.npy"),
    "no exit cheap enough": (lambda m: ["predict", m / "bundle", m / "good.png", "--budget-flops", "10"], 3, "exit"),
    "exit 0": (lambda m: ["predict", m / "bundle", m / "good.png", "--exit", "0"], 2, "0"),
    "nothing to answer": (lambda m: ["predict", m / "bundle"], 2, ""),
}


START = "digits: 10 classes (0, 1, 2, "  # what a run says when it begins, before it can fail


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_bad_input_gives_one_sentence_and_a_code(case, folder, capfd):
    arguments, code, says = case
    words = arguments(folder)
    before = sorted(path for path in folder.rglob("*") if "altered" not in str(path) and "diverged" not in str(path))
    capfd.readouterr()
    assert call(*words) == code
    out, err = capfd.readouterr()
    assert says in " ".join(err.split())
    assert "Traceback" not in err
    assert out == ""
    assert err.strip(), "nothing was said"
    sentences = [line for line in err.strip().splitlines() if not line.startswith(START)]
    assert len(sentences) == 1, err
    after = sorted(path for path in folder.rglob("*") if "altered" not in str(path) and "diverged" not in str(path))
    assert before == after, "something was written or lost"


def test_there_are_at_least_thirty_kinds():
    assert len(CASES) >= 30


def test_what_the_bad_input_left_alone_still_answers(folder, capfd):
    assert call("predict", folder / "bundle", folder / "good.png", "--json") == 0
    assert json.loads(capfd.readouterr().out)
    assert Profile.load(folder / "run" / "profile.json").num_groups == 2
