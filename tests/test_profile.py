"""Costs by hand, and every kind of damaged profile.json."""

import json
from pathlib import Path

import pytest
from bundles import make_profile

from anytime_lct.errors import ProfileError
from anytime_lct.exits.profile import WEIGHTS, Cost, Profile, weights_sum


def test_costs_by_hand() -> None:
    profile = make_profile(params=((1, 2, 4), (8, 16)))
    assert [profile.cost(i) for i in (1, 2, 3)] == [
        Cost(flops=30 + 5, params=1 + 8),
        Cost(flops=30 + 20 + 50, params=1 + 2 + 16),
        Cost(flops=30 + 20 + 100, params=1 + 2 + 4),
    ]


def test_one_group_needs_no_critic() -> None:
    assert make_profile((0.9,), (7,), ()).cost(1).flops == 7


def test_quality_is_that_of_the_choosing_split() -> None:
    assert make_profile().quality(2).value == 0.90
    assert make_profile(split="test").quality(2).value == pytest.approx(0.89)


@pytest.mark.parametrize("index", [0, 4, -1])
def test_unknown_exit(index: int) -> None:
    with pytest.raises(ProfileError, match="1 to 3"):
        make_profile().cost(index)


def test_round_trip_leaves_no_other_file(tmp_path: Path) -> None:
    profile = make_profile(seconds=(0.001, None, 0.003))
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile == Profile.load(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


def test_a_profile_of_other_weights_is_refused(tmp_path: Path) -> None:
    for name in WEIGHTS:
        (tmp_path / name).write_bytes(b"weights")
    profile = make_profile().model_copy(update={"weights": weights_sum(tmp_path)})
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path) == profile
    (tmp_path / WEIGHTS[1]).write_bytes(b"others")
    assert f"anytime-lct analyze {tmp_path}" in _one_sentence(tmp_path)
    (tmp_path / WEIGHTS[0]).unlink()
    assert Profile.load(tmp_path) == profile  # beside no weights it is of whatever it says
    with pytest.raises(ProfileError, match="train them"):
        weights_sum(tmp_path)


def test_unwritable_folder(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="absent"):
        make_profile().save(tmp_path / "absent" / "profile.json")


def _one_sentence(path: Path) -> str:
    with pytest.raises(ProfileError) as caught:
        Profile.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_truncated_and_foreign_files(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    assert "analyze" in _one_sentence(path)
    make_profile().save(path)
    path.write_text(path.read_text()[:-40])
    assert "truncated" in _one_sentence(path)
    path.write_bytes(b"\xff\xfe\x00")
    assert "readable" in _one_sentence(path)
    path.write_text("[" * 100_000)
    assert "truncated or altered" in _one_sentence(path)
    path.write_text("[]")
    assert "damaged" in _one_sentence(path)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": 2}, "newer"),
        ({"format": 0}, "format"),
        ({"extra": 1}, "extra"),
        ({"groups": []}, "groups"),
        ({"critics": []}, "critics"),
        ({"exits": []}, "exits"),
        ({"p_worse": [[1.0]]}, "p_worse"),
        ({"metric": "loss"}, "metric"),
        ({"groups": [{"flops": -1, "params": 1}] * 3}, "flops"),
        ({"groups": [{"flops": "30", "params": 1}] * 3}, "flops"),
    ],
)
def test_altered_values(tmp_path: Path, change: dict[str, object], says: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(json.loads(make_profile().model_dump_json()) | change))
    assert says in _one_sentence(path)


def test_altered_qualities(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    for key, value, says in (
        ("value", 0.1, "interval"),
        ("value", float("nan"), "value"),
        ("samples", 0, "samples"),
    ):
        raw = json.loads(make_profile().model_dump_json())
        raw["exits"][1]["test"][key] = value
        path.write_text(json.dumps(raw))
        assert says in _one_sentence(path)
    raw = json.loads(make_profile().model_dump_json())
    raw["exits"][1]["validation"] = None
    path.write_text(json.dumps(raw))
    assert "validation" in _one_sentence(path)
