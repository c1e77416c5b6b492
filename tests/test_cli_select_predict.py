"""`select` and `predict` as a user calls them."""

import csv
import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from bundles import make_profile, rewrite, write_image_bundle, write_text_bundle
from PIL import Image
from programs import Program

from anytime_lct.errors import InputError
from anytime_lct.exits.budget import Budget
from anytime_lct.exits.bundle import describe_file
from anytime_lct.exits.thresholds import MeanCost, Thresholds, ThresholdTable
from anytime_lct.runtime import inputs
from anytime_lct.runtime.preprocess import from_array
from anytime_lct.runtime.session import AnytimeSession


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_profile(seconds=(0.001, 0.002, 0.004)).save(tmp_path / "profile.json")
    return tmp_path


def test_select_chooses_on_validation_and_reports_the_test(program: Program, folder: Path) -> None:
    code, out, err = program("select", folder, "--budget-flops", "0.12k", "--json")
    choice = json.loads(out)
    assert (code, err, choice["exit"], choice["flops"], choice["split"]) == (0, "", 2, 100, "validation")
    assert choice["quality"]["value"] == 0.90
    assert [choice["test"][key] for key in ("value", "low", "high")] == pytest.approx([0.89, 0.88, 0.90])
    assert choice["flops_share"] == choice["params_share"] == 100 / 150
    assert "most accurate exit on the validation split that fits 120 FLOPs" in choice["reason"]


def test_select_draws_a_table(program: Program, folder: Path) -> None:
    code, out, _ = program("select", folder / "profile.json", "--budget-flops", "120")
    assert code == 0
    for shown in (
        "2 of 3",
        "100 (66.7% of the main network)",
        "2ms",
        "90.00%",
        "89.00% (95%: 88.00% to 90.00%)",
    ):
        assert shown in out


@pytest.mark.parametrize(
    ("conditions", "exit"),
    [
        (["--budget-params", "35"], 1), (["--budget-latency", "3ms"], 2), (["--min-accuracy", "90%"], 2),
        (["--max-drop", "5"], 2), (["--max-drop", "4.9"], 3), (["--max-drop", "0.05"], 2), (["--max-drop", "5%"], 2),
        (["--min-accuracy", "90"], 2), (["--budget-flops", "67%"], 2), (["--budget-flops", "0.66"], 1),
        (["--within-noise"], 1),
        (["--min-accuracy", "0.85", "--within-noise", "--budget-latency", "3ms"], 2), ([], 3),
    ],
)  # fmt: skip
def test_select_conditions(program: Program, folder: Path, conditions: list[str], exit: int) -> None:
    assert json.loads(program("select", folder, "--json", *conditions)[1])["exit"] == exit


def test_select_bits_per_character(program: Program, tmp_path: Path) -> None:
    write_text_bundle(tmp_path)
    assert json.loads(program("select", tmp_path, "--max-bpc", "2.3", "--json")[1])["exit"] == 2
    assert "2.190 BPC" in program("select", tmp_path, "--max-bpc", "2.3")[1]


def test_select_of_a_bundle_counts_served_exits(program: Program, tmp_path: Path) -> None:
    write_image_bundle(tmp_path, served=(1, 2))
    assert json.loads(program("select", tmp_path, "--json")[1])["exit"] == 2


def test_select_complains_in_one_sentence(program: Program, folder: Path, tmp_path: Path) -> None:
    code, out, err = program("select", folder, "--budget-flops", "2", "--json")
    assert code == 3 and "exit 1 needs the least with 35 FLOPs" in err
    answer = json.loads(out)
    assert (answer["error"], answer["exit_code"], answer["exit"]) == (err.strip(), 3, None)
    assert [(near["exit"], near["flops"]) for near in answer["nearest"]] == [(1, 35)]
    make_profile().save(tmp_path / "untimed.json")
    code, out, err = program("select", tmp_path / "untimed.json", "--budget-latency", "5ms")
    assert (code, out) == (2, "") and "anytime-lct analyze" in err
    for arguments in (
        [folder / "absent"], [folder, "--budget-flops", "20Q"], [folder, "--max-bpc", "2"],
        [folder, "--max-drop", "nan"], [folder, "--max-drop", "0.5"], [folder, "--budget-flops", "1"],
    ):  # fmt: skip
        code, out, err = program("select", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    write_image_bundle(tmp_path / "bundle")
    x = np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    return tmp_path / "bundle", tmp_path / "x.npy", x


def test_predict_answers_as_the_session_does(program: Program, images: tuple[Path, Path, np.ndarray]) -> None:
    bundle, file, x = images
    code, out, err = program("predict", bundle, file, "--budget-flops", "100", "--top", "2", "--json")
    answers = json.loads(out)["answers"]
    expected = AnytimeSession(bundle).run(x, Budget(flops=100))
    assert (code, err, len(answers)) == (0, "", 2)
    for sample, answer in enumerate(answers):
        assert (answer["exit"], answer["flops"], answer["sample"]) == (2, 100, sample)
        assert [each["index"] for each in answer["top"]] == np.argsort(-expected.logits[sample])[:2].tolist()
        assert answer["top"][0]["class"] == ("zero", "one", "two")[expected.classes[sample]]
        assert answer["top"][0]["probability"] == expected.probabilities[sample].max()


def test_predict_draws_a_table(program: Program, images: tuple[Path, Path, np.ndarray]) -> None:
    bundle, file, x = images
    code, out, _ = program("predict", bundle, file, "--exit", "1")
    answer = AnytimeSession(bundle).run_to(1, x)
    assert code == 0
    for sample in range(2):
        named = ("zero", "one", "two")[answer.classes[sample]]
        assert f"x.npy[{sample}]" in out and f"{named} {100 * answer.probabilities[sample].max():.1f}%" in out


def test_predict_streams_up_to_the_chosen_exit(program: Program, images: tuple[Path, Path, np.ndarray]) -> None:
    bundle, file, _ = images
    answers = json.loads(program("predict", bundle, file, "--stream", "--json")[1])["answers"]
    assert [(row["exit"], row["flops"]) for row in answers] == [
        (1, 35), (1, 35), (2, 105), (2, 105), (3, 205), (3, 205),
    ]  # fmt: skip
    _, out, _ = program("predict", bundle, file, "--stream", "--exit", "2")
    assert [line.split("  ")[1:3] for line in out.splitlines()] == [
        ["exit 1", "35 FLOPs"], ["exit 1", "35 FLOPs"], ["exit 2", "105 FLOPs"], ["exit 2", "105 FLOPs"],
    ]  # fmt: skip


def test_predict_text(program: Program, tmp_path: Path) -> None:
    bundle = write_text_bundle(tmp_path / "bundle")
    (tmp_path / "a.txt").write_text("ab")
    code, out, _ = program("predict", tmp_path / "bundle", tmp_path / "a.txt", "--text", "a b", "--json")
    answers = json.loads(out)["answers"]
    assert code == 0 and [(row["input"], len(row["top"])) for row in answers] == [
        (str(tmp_path / "a.txt"), 5), ("--text", 5),
    ]  # fmt: skip
    expected = AnytimeSession(bundle).run(np.array([[0, 2, 1]])).probabilities[0, -1]
    assert answers[1]["top"][0]["index"] == expected.argmax()
    assert sum(each["probability"] for each in answers[1]["top"]) == pytest.approx(1.0)
    assert "'\\n'" in program("predict", tmp_path / "bundle", "--text", "a b")[1]


@pytest.fixture
def photos(images: tuple[Path, Path, np.ndarray], tmp_path: Path) -> Path:
    """A folder of files that can be read (a.png, b/c.npy, b/d.PNG), one that is damaged, and what is no input."""
    folder, rng = tmp_path / "photos", np.random.default_rng(1)
    (folder / "b" / ".thumbnails").mkdir(parents=True)
    for name in ("a.png", "b/d.PNG", "b/.thumbnails/d.png", ".e.png"):
        Image.fromarray(rng.integers(0, 256, (9, 7), dtype=np.uint8)).save(folder / name)
    np.save(folder / "b" / "c.npy", images[2])
    (folder / "b" / "damaged.jpg").write_bytes(b"bad")
    (folder / "notes.md").write_text("no picture")
    (folder / "b" / "again").symlink_to(folder)
    return folder


def test_predict_answers_a_folder_but_for_what_is_damaged(
    program: Program, images: tuple[Path, Path, np.ndarray], photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    code, out, err = program("predict", images[0], photos, "--json")
    answer = json.loads(out)
    names = [f"{photos}/{name}" for name in ("a.png", "b/c.npy", "b/c.npy", "b/d.PNG")]
    assert [row["input"] for row in answer["answers"]] == names and [row["sample"] for row in answer["answers"]][2] == 1
    assert [each["input"] for each in answer["failed"]] == [f"{photos}/b/damaged.jpg"]
    assert code == 2 and err.splitlines() == [answer["failed"][0]["error"], "1 of 4 inputs have no answer."]
    alone = json.loads(program("predict", images[0], *dict.fromkeys(names), "--json")[1])
    assert alone["answers"] == answer["answers"] and not alone["failed"]
    code, out, err = program("predict", images[0], f"{photos}/**/*.npy", photos / "absent.png", f"{photos}/x*")
    assert (code, err.count("\n")) == (2, 3) and "c.npy[1]" in out and "absent.png" in err and "matches none" in err
    code, out, err = program(
        "predict", images[0], photos / "b" / ".thumbnails" / "d.png", photos.parent / "bundle", "--json"
    )
    assert code == 2 and len(json.loads(out)["answers"]) == 1 and "without a file" in err


def test_predict_prints_csv_and_json_lines(
    program: Program, images: tuple[Path, Path, np.ndarray], photos: Path
) -> None:
    bundle, file, _ = images
    expected = json.loads(program("predict", bundle, photos, file, "--top", "2", "--json")[1])["answers"]
    code, out, _ = program("predict", bundle, photos, file, "--top", "2", "--format", "jsonl")
    assert code == 2 and [json.loads(line) for line in out.splitlines()] == expected
    code, out, _ = program("predict", bundle, photos, file, "--top", "2", "--format", "csv")
    rows = list(csv.DictReader(out.splitlines()))
    assert code == 2 and [row["input"] for row in rows] == [row["input"] for row in expected]
    for row, answer in zip(rows, expected, strict=True):
        best, second = answer["top"]
        assert (row["class"], row["class_2"], row["exit"]) == (best["class"], second["class"], str(answer["exit"]))
        assert float(row["probability"]) == best["probability"]


def test_predict_reads_standard_input(
    program: Program, images: tuple[Path, Path, np.ndarray], photos: Path, tmp_path: Path, monkeypatch
) -> None:
    bundle, file, _ = images
    text = tmp_path / "a.txt"
    text.write_text("ab")
    write_text_bundle(tmp_path / "text")
    for folder, path in ((bundle, file), (bundle, photos / "a.png"), (tmp_path / "text", text)):
        expected = json.loads(program("predict", folder, path, "--json")[1])["answers"]
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(path.read_bytes())))
        answers = json.loads(program("predict", folder, "-", "--json")[1])["answers"]
        assert answers == [row | {"input": "-"} for row in expected]
    code, out, err = program("predict", bundle, "-")  # which is at its end
    assert (code, out, err.count("\n")) == (2, "", 1) and "standard input" in err


def test_predict_answers_large_arrays_in_portions(
    program: Program, images: tuple[Path, Path, np.ndarray], tmp_path: Path, monkeypatch
) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (37, 6, 6), dtype=np.uint8)
    np.save(tmp_path / "many.npy", pixels)
    sizes, session = list[int](), AnytimeSession(images[0])
    run = AnytimeSession.run
    monkeypatch.setattr(AnytimeSession, "run", lambda self, x, ask: sizes.append(len(x)) or run(self, x, ask))
    answers = json.loads(program("predict", images[0], tmp_path / "many.npy", "--json")[1])["answers"]
    expected = run(session, from_array(pixels, session.manifest.preprocessing))
    assert sizes == [16, 16, 5] and [row["sample"] for row in answers] == list(range(37))
    assert [row["top"][0]["index"] for row in answers] == expected.classes.tolist()


def test_an_array_that_gets_shorter_while_it_is_read_is_named(
    images: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (3000, 6, 6), dtype=np.uint8)
    manifest = AnytimeSession(images[0]).manifest
    for order in ("C", "F"):  # numbers of samples that are not side by side are in memory before
        np.save(tmp_path / "many.npy", np.array(pixels, order=order))
        portions = inputs.read(str(tmp_path / "many.npy"), manifest)
        first = next(portions)
        os.truncate(tmp_path / "many.npy", 20_000)
        expected = [from_array(pixels[k : k + 16], manifest.preprocessing) for k in (0, 16)]
        np.testing.assert_array_equal(first.x, expected[0])
        np.testing.assert_array_equal(next(portions).x, expected[1])
        if order == "C":
            with pytest.raises(InputError, match=r"many.npy.*got a shorter file"):
                list(portions)
        else:
            assert len(list(portions)) == 3000 // 16 - 1


def test_a_narrow_terminal_shows_whole_names_of_inputs(
    program: Program, images: tuple[Path, Path, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    lines = program("predict", images[0], images[1])[1].splitlines()
    first = "".join(line.split("│")[1].strip() for line in lines if line.count("│") > 3)
    assert first.startswith(str(images[1])[:30]) and "…" not in first


def test_predict_by_a_fixed_exit(program: Program, images: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    write_image_bundle(tmp_path / "some", served=(1, 3), profile=make_profile((0.9, 0.8, 0.7)))
    for named, exit in (("--fixed", "1"), ("--fixed", "3"), ("--fixed", "main"), ("--exit", "main"), ("--exit", "2")):
        answers = json.loads(program("predict", tmp_path / "some", images[1], named, exit, "--json")[1])["answers"]
        chosen = {"1": 1, "3": 3, "main": 3}[exit] if named == "--fixed" else 1  # the most accurate up to there
        assert {row["exit"] for row in answers} == {chosen}
    for arguments, says in (
        (("--exit", "9"), "among 1, 3, got 9"),
        (("--fixed", "2"), "1, 3, got 2"),
        (("--fixed", "deep"), "from 1 to 3, or main"),
        (("--fixed", "1", "--budget-flops", "20M"), "--fixed alone"),
        (("--format", "xml"), "table, csv, jsonl"),
        (("--format", "csv", "--json"), "got both"),
    ):
        code, out, err = program("predict", tmp_path / "some", images[1], *arguments)
        assert (code, err.count("\n")) == (2, 1) and says in err
        assert out == ("" if "--json" not in arguments else json.dumps({"error": err.strip(), "exit_code": 2}) + "\n")


def test_predict_complains_in_one_sentence(
    program: Program, images: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    bundle, file, _ = images
    write_image_bundle(tmp_path / "exits", only="exits")
    for code, says, arguments in (
        (3, "35 FLOPs", [bundle, file, "--budget-flops", "2"]),
        (2, "Expected an input, got none", [bundle]),
        (2, "Expected images", [bundle, "--text", "ab"]),
        (2, "exported bundle", [tmp_path, file]),
        (2, "without --only exits", [tmp_path / "exits", file, "--stream"]),
        (2, "from 1 on", [bundle, file, "--exit", "0"]),
    ):
        status, out, err = program("predict", *arguments)
        assert (status, out, err.count("\n")) == (code, "", 1) and says in err


def test_calibrate_and_predict_in_time(program: Program, tmp_path: Path) -> None:
    write_image_bundle(tmp_path / "tiny")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((4, 1, 6, 6)).astype(np.float32))
    predict = ("predict", tmp_path / "tiny", tmp_path / "x.npy")
    code, _, err = program(*predict, "--timeout", "10ms")
    assert code == 2 and "anytime-lct calibrate" in err
    code, out, _ = program("calibrate", tmp_path / "tiny", "--sizes", "1,4", "--seconds", "0.01", "--json")
    assert code == 0 and list(json.loads(out)["sizes"]) == ["1", "4"]
    code, out, _ = program("calibrate", tmp_path / "tiny", "--sizes", "2", "--seconds", "0.01")
    assert code == 0 and "exit 3" in out and (tmp_path / "tiny.calibration.json").is_file()
    for more, exits in (
        (("--timeout", "60s"), [3] * 4),
        (("--budget-latency", "1s"), [3] * 4),
        (("--timeout", "1us"), [1] * 4),
        (("--min-confidence", "0.0001"), [1] * 4),
    ):
        code, out, _ = program(*predict, *more, "--json")
        assert code == 0 and [row["exit"] for row in json.loads(out)["answers"]] == exits
    (tmp_path / "tiny.calibration.json").write_text("{")
    code, _, err = program(*predict)
    assert code == 2 and "measure again with: anytime-lct calibrate" in " ".join(err.split())
    assert program("calibrate", tmp_path / "tiny", "--sizes", "2", "--seconds", "0.01")[0] == program(*predict)[0] == 0
    x = np.load(tmp_path / "x.npy")
    expected = AnytimeSession(tmp_path / "tiny").run(x, min_confidence=0.5, measure="margin")
    code, out, _ = program(*predict, "--min-confidence", "0.5", "--measure", "margin", "--json")
    assert [row["exit"] for row in json.loads(out)["answers"]] == expected.exits.tolist()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--timeout", "5"), "800us, 5ms or 0.1s"),
        (("--min-confidence", "2"), "above 0 and up to 1"),
        (("--min-confidence", "0.5", "--measure", "mood"), "max-probability, margin, entropy"),
        (("--stream", "--timeout", "5ms"), "--stream alone"),
    ],
)
def test_predict_refuses_what_makes_no_sense(
    program: Program, tmp_path: Path, more: tuple[str, ...], says: str
) -> None:
    write_image_bundle(tmp_path / "tiny")
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 6, 6), np.float32))
    code, out, err = program("predict", tmp_path / "tiny", tmp_path / "x.npy", *more)
    assert (code, out) == (2, "") and says in " ".join(err.split())


def test_calibrate_refuses_a_read_only_folder_before_it_measures(program: Program, tmp_path: Path, monkeypatch) -> None:
    write_image_bundle(tmp_path / "tiny")
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    code, _, err = program("calibrate", tmp_path / "tiny", "--seconds", "1000")
    assert code == 2 and f"'{tmp_path}' to be writable" in " ".join(err.split())
    assert not (tmp_path / "tiny.calibration.json").exists()


def test_calibrate_with_the_fastest_number_of_threads(program: Program, tmp_path: Path) -> None:
    write_image_bundle(tmp_path / "tiny")
    calibrate = ("calibrate", tmp_path / "tiny", "--sizes", "1", "--seconds", "0.01", "--json")
    code, out, _ = program(*calibrate, "--threads", "auto")
    assert code == 0 and 1 <= json.loads(out)["threads"] <= (os.cpu_count() or 1)
    code, out, _ = program(*calibrate, "--threads", "2")
    assert code == 0 and json.loads(out)["threads"] == 2
    for wrong in ("0", "many", "-1"):
        code, _, err = program(*calibrate, "--threads", wrong)
        assert code == 2 and "a number of threads or auto" in err


@pytest.mark.parametrize("sizes", ["", "0", "1,x", "-4", "1000000000000"])
def test_calibrate_refuses_sizes_that_are_none(program: Program, tmp_path: Path, sizes: str) -> None:
    write_image_bundle(tmp_path / "tiny")
    code, _, err = program("calibrate", tmp_path / "tiny", "--sizes", sizes)
    assert code == 2 and "sizes of batches" in err and not (tmp_path / "tiny.calibration.json").exists()


def test_predict_within_a_mean_budget(program: Program, tmp_path: Path) -> None:
    bundle = write_image_bundle(tmp_path / "tiny")
    x = np.random.default_rng(0).standard_normal((8, 1, 6, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    predict = ("predict", tmp_path / "tiny", tmp_path / "x.npy", "--mean-flops", "120", "--json")
    code, _, err = program(*predict)
    assert code == 2 and "anytime-lct thresholds RUN" in err
    quality, cost = bundle.profile.quality(1), MeanCost(flops=1.0, low=1.0, high=1.0)
    rule = Thresholds(
        mean_flops=120.0, measure="margin", at={1: 0.4, 2: 0.0}, shares={1: 0.5, 2: 0.5}, accuracy=quality, cost=cost
    )
    ThresholdTable(rules=(rule,)).save(tmp_path / "tiny" / "thresholds.json")
    rewrite(tmp_path / "tiny", thresholds=describe_file(tmp_path / "tiny" / "thresholds.json").model_dump())
    code, out, _ = program(*predict)
    expected = AnytimeSession(tmp_path / "tiny").run(x, thresholds=rule)
    assert code == 0 and [row["exit"] for row in json.loads(out)["answers"]] == expected.exits.tolist()
    assert program(*predict, "--stream")[0] == 2
