"""Every kind of damage to a bundle is one sentence."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import make_profile, rewrite, write_image_bundle, write_text_bundle
from pydantic import ValidationError

from anytime_lct.errors import BundleError
from anytime_lct.exits.bundle import Bundle, describe_file, is_bundle, write_manifest


def test_round_trip(tmp_path: Path) -> None:
    bundle = write_image_bundle(tmp_path)
    assert Bundle.open(str(tmp_path)) == bundle
    assert bundle.profile == make_profile() and is_bundle(tmp_path)
    assert (bundle.group(3).name, bundle.critic(2).name, bundle.exit(1).name) == (
        "group_3.onnx", "critic_2.onnx", "exit_1.onnx",
    )  # fmt: skip
    assert describe_file(bundle.exit(1)) == bundle.manifest.exits[1]
    assert not list(tmp_path.glob("*.part"))


def test_nothing_changes_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        write_image_bundle(tmp_path).manifest.num_groups = 4


def _flip_a_byte(folder: Path) -> None:
    content = bytearray((folder / "critic_1.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "critic_1.onnx").write_bytes(content)


def _truncate(folder: Path) -> None:
    (folder / "group_3.onnx").write_bytes((folder / "group_3.onnx").read_bytes()[:-1])


def _other_profile(folder: Path) -> None:
    make_profile((0.8, 0.9), (1, 2), (3,)).save(folder / "profile.json")
    rewrite(folder, profile=describe_file(folder / "profile.json").model_dump())


def _broken_profile(folder: Path) -> None:
    (folder / "profile.json").write_text("{}")
    rewrite(folder, profile=describe_file(folder / "profile.json").model_dump())


def _named(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        raw = json.loads((folder / "manifest.json").read_text())
        raw["groups"][0]["name"] = name
        rewrite(folder, groups=raw["groups"])

    return change


def _folder_for_file(folder: Path) -> None:
    (folder / "exit_2.onnx").unlink()
    (folder / "exit_2.onnx").mkdir()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "no manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text('{"format": 1,'), "truncated or altered"),
        (lambda folder: (folder / "manifest.json").write_text("[1]"), "damaged"),
        (lambda folder: (folder / "manifest.json").write_bytes(b"\xff\x00"), "readable"),
        (lambda folder: (folder / "group_2.onnx").unlink(), "lacks 'group_2.onnx'"),
        (_folder_for_file, "lacks 'exit_2.onnx'"),
        (_truncate, "group_3.onnx' is truncated or altered"),
        (_flip_a_byte, "critic_1.onnx' is truncated or altered"),
        (lambda folder: rewrite(folder, format=2), "newer anytime-lct"),
        (lambda folder: rewrite(folder, format="1"), "format"),
        (lambda folder: rewrite(folder, hobby="none"), "hobby"),
        (lambda folder: rewrite(folder, outputs="3"), "outputs"),
        (lambda folder: rewrite(folder, outputs=4), "class names"),
        (lambda folder: rewrite(folder, served=[]), "served"),
        (lambda folder: rewrite(folder, served=[2, 1]), "rising"),
        (lambda folder: rewrite(folder, served=[1, 4]), "exit 4"),
        (lambda folder: rewrite(folder, served=[0, 1]), "exit 0"),
        (lambda folder: rewrite(folder, critics={}), "exit 1"),
        (lambda folder: rewrite(folder, groups=[], exits={}), "exit 1"),
        (_named("../group_1.onnx"), "name"),
        (_named("a/group_1.onnx"), "name"),
        (_named("a\\group_1.onnx"), "name"),
        (_named("..onnx"), "name"),
        (_named("/etc/passwd"), "name"),
        (_named("group_1.onnx\n"), "name"),
        (_other_profile, "another network"),
        (_broken_profile, "no usable profile"),
    ],
)
def test_damage_is_one_sentence(tmp_path: Path, damage: Callable[[Path], None], says: str) -> None:
    write_image_bundle(tmp_path)
    damage(tmp_path)
    with pytest.raises(BundleError) as caught:
        Bundle.open(tmp_path)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_unverified_opening_looks_at_sizes_only(tmp_path: Path) -> None:
    write_image_bundle(tmp_path)
    _flip_a_byte(tmp_path)
    assert Bundle.open(tmp_path, verify=False).manifest.served == (1, 2, 3)
    _truncate(tmp_path)
    with pytest.raises(BundleError, match="truncated"):
        Bundle.open(tmp_path, verify=False)


def test_not_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="anytime-lct export"):
        Bundle.open(tmp_path / "absent")


def test_unwritable_manifest(tmp_path: Path) -> None:
    manifest = write_text_bundle(tmp_path).manifest
    with pytest.raises(BundleError, match="absent"):
        write_manifest(tmp_path / "absent", manifest)


@pytest.mark.parametrize(
    "rules",
    [
        {"kind": "text", "symbols": ""}, {"kind": "text", "symbols": "aa"}, {"kind": "image", "channels": 1},
        {"kind": "image", "channels": 1, "height": 6, "width": 0},
        {"kind": "image", "channels": 1, "height": 6, "width": 6, "mean": [0.1, 0.2]},
        {"kind": "image", "channels": 1, "height": 6, "width": 6, "std": [0.0]},
    ],
)  # fmt: skip
def test_preprocessing_is_complete(tmp_path: Path, rules: dict[str, object]) -> None:
    write_image_bundle(tmp_path)
    rewrite(tmp_path, preprocessing=rules)
    with pytest.raises(BundleError, match="preprocessing"):
        Bundle.open(tmp_path)
