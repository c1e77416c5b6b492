"""The reference of a recipe: every key is explained, its defaults are those of a run, and the page is up to date."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from anytime_lct.cli.main import run as program
from anytime_lct.errors import RecipeError
from anytime_lct.recipes import keys, reading
from anytime_lct.verbs import reference
from anytime_lct.verbs.reference import fitted

DOCS = Path(__file__).parent.parent / "docs"


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as end:
        program(["recipe", *arguments])
    out, err = capsys.readouterr()
    assert not end.value.code, err
    return out


@pytest.mark.parametrize("name", ["resnet", "resnet50", "mlp", "lstm", "torchvision:resnet18"])
def test_every_key_is_explained(name):
    for key in reference(reading.complete({"model": {"name": name}})):
        assert key.text.endswith("."), f"{key.name} has no line below its field"
        assert key.values or key.table == "model"


@pytest.mark.parametrize("arguments", [["--data", "digits"], ["--data", "text", "--explain"], ["--model", "mlp"]])
def test_what_it_prints_is_a_recipe_with_the_defaults(arguments, capsys, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(output(capsys, *arguments), encoding="utf-8")
    table, name = arguments[0].removeprefix("--"), arguments[1]
    expected = fitted(reading.complete({table: {"name": name}}))
    printed = reading.read(path)
    assert reference(printed) == reference(expected)
    options = printed.model_dump(exclude={"model"}, include=set(type(printed).model_fields))
    assert options == expected.model_dump(exclude={"model"})


def test_it_prints_what_follows_from_network_and_data(capsys):
    assert output(capsys, "critics.lr", "--data", "digits").endswith("lr = 0.025\n")  # 32 samples


def test_a_key_is_chosen_by_its_name_its_table_or_its_entry(capsys):
    listed = json.loads(output(capsys, "lr", "--set", "groups.lr=0.7", "--json"))
    assert [row["name"] for row in listed] == ["groups.lr", "critics.lr"] and listed[0]["default"] == 0.7
    text = output(capsys, "cut.by")
    assert text.startswith("[cut]\n# ") and "# Values: shares | layers | balanced | measured | memory\n" in text
    assert text.endswith('by = "shares"\n')
    with pytest.raises(RecipeError, match=r"no key 'gropus.lr'; did you mean groups.lr"):
        keys.matching(reference(reading.complete({})), "gropus.lr")


def test_the_page_is_up_to_date():
    spec = importlib.util.spec_from_file_location("recipe_page", DOCS / "recipe.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "recipe.md").read_text(encoding="utf-8") == module.page(), "write it with: python docs/recipe.py"
