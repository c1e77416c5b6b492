"""The picture shows the numbers of the profile, and appears whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bundles import make_profile
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from PIL import Image

from anytime_lct.analysis import picture
from anytime_lct.errors import AnalysisError
from anytime_lct.exits.profile import Profile


def drawn(profile: Profile) -> Axes:
    return picture.profile_figure(profile).axes[0]


def bars(axes: Axes) -> list[ErrorbarContainer]:
    return [container for container in axes.containers if isinstance(container, ErrorbarContainer)]


def test_every_exit_stands_at_its_flops_and_test_accuracy():
    axes = drawn(make_profile((0.80, 0.90, 0.95)))
    points = [bar.lines[0].get_xydata()[0].tolist() for bar in bars(axes)]
    assert points == [pytest.approx(point) for point in [[35, 79], [100, 89], [150, 94]]]
    assert [text.get_text() for text in axes.texts] == ["exit 1", "exit 2", "main"]
    assert axes.get_xscale() == "linear"
    low, high = axes.get_ylim()
    assert low < high


def test_intervals_of_the_test_split():
    axes = drawn(make_profile((0.80, 0.90, 0.95), test=[0.7, 0.8, 0.9]))
    ends = [bar.lines[2][0].get_segments()[0][:, 1].tolist() for bar in bars(axes)]
    assert ends == [pytest.approx(pair) for pair in [[69, 71], [79, 81], [89, 91]]]


def test_the_front_is_joined_and_the_others_are_grey():
    """On validation exit 2 is beaten by exit 1; that the test split disagrees changes nothing."""
    axes = drawn(make_profile((0.90, 0.85, 0.95), test=[0.80, 0.85, 0.90]))
    front = next(line for line in axes.lines if str(line.get_label()).startswith("Pareto"))
    assert front.get_xydata().tolist() == [pytest.approx(p) for p in [[35, 90], [150, 95]]]
    colours = [to_hex(bar.lines[0].get_color()) for bar in bars(axes)]
    assert colours == [picture.BLUE, picture.GREY, picture.BLUE]


def test_bits_per_character_rise_downwards():
    axes = drawn(make_profile((2.0, 1.8, 1.7), metric="bpc"))
    low, high = axes.get_ylim()
    assert low > high and "better is up" in axes.get_ylabel()
    assert bars(axes)[0].lines[0].get_xydata()[0].tolist() == pytest.approx([35, 1.99])


def test_a_wide_range_is_logarithmic():
    axes = drawn(make_profile(groups=(10, 1000, 100_000), critics=(1, 1)))
    assert axes.get_xscale() == "log"
    assert axes.xaxis.get_major_formatter()(20_000) == "20k"


def test_a_png_appears_whole(tmp_path: Path):
    picture.draw(make_profile(), tmp_path / "exits.png")
    with Image.open(tmp_path / "exits.png") as image:
        image.load()
        assert image.format == "PNG" and image.size == (1152, 704)
    assert [path.name for path in tmp_path.iterdir()] == ["exits.png"]


def test_a_failed_write_keeps_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "exits.png").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AnalysisError, match="No space left"):
        picture.draw(make_profile(), tmp_path / "exits.png")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("exits.png", b"old")]


def test_no_such_folder(tmp_path: Path):
    with pytest.raises(AnalysisError, match=r"Expected '.*nowhere/exits.png' to be writable"):
        picture.draw(make_profile(), tmp_path / "nowhere" / "exits.png")
