"""What an open project has beside its code: the guide to contributing, hooks, issue forms, a citation, metadata."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from forked_python import python
from pages import HOUSE, blocks
from programs import run

import anytime_lct

GUIDE = HOUSE / "docs" / "CONTRIBUTING.md"
HEAD = re.compile(r"# ([\w/.]+\.py)(?:, (among the imports|in|instead of)(?: (\w+))?)?\n")
SECONDS = 120


def changes() -> Iterator[tuple[str, str, str, str]]:
    """Yield the path, the way, the name and the text of every change in the guide."""
    for block in blocks(GUIDE):
        if block.kind == "py":
            head = HEAD.match(block.text)
            assert head is not None, block.text
            yield head[1], head[2] or "new", head[3] or "", block.text[head.end() :]


def changed(text: str, way: str, name: str, new: str) -> str:
    """Return a file with a line among its imports, a row at the head of a table, or another line for a name."""
    lines = text.splitlines(keepends=True)
    opening = "from __future__" if way == "among the imports" else name
    (place,) = [k for k, line in enumerate(lines) if re.match(rf"{opening}\b", line)]
    if way == "instead of":
        assert new.startswith(lines[place].rstrip("\n]")), "the guide repeats a line as it was"
        lines[place] = new
    else:
        lines.insert(place + 1, new)
    return "".join(lines)


@pytest.mark.tutorial
def test_what_the_guide_adds_works(tmp_path: Path):
    package = tmp_path / "anytime_lct"
    shutil.copytree(HOUSE / "anytime_lct", package, ignore=shutil.ignore_patterns("__pycache__"))
    for top in ("models", "cli"):
        shutil.copytree(HOUSE / top, package / top, ignore=shutil.ignore_patterns("__pycache__"))
    for path, way, name, text in changes():
        file = (package if path.startswith("models/") else tmp_path) / path
        file.write_text(text if way == "new" else changed(file.read_text(), way, name, text), encoding="utf-8")
    train = next(block.text for block in blocks(GUIDE) if block.heading == "And then").splitlines()[0].split()[1:]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for arguments in (train, ["train", "--resume", "--run-dir", "runs/stripes", "--epochs", "3"]):
        command = [python(), "-m", "anytime_lct.cli.main", *arguments]
        done = run(command, SECONDS, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
    epochs = [json.loads(line) for line in (tmp_path / "runs/stripes/metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3] and len(epochs[-1]["train"]["loss"]) == 2
    recipe = tomllib.loads((tmp_path / "runs/stripes/recipe.toml").read_text())
    assert (recipe["train"]["method"], recipe["critic"]["kind"]) == ("weighted", "average")


def test_hooks_run_what_ci_runs():
    ci = (HOUSE / ".ci" / "run").read_text(encoding="utf-8").replace('"$work/site"', "build/site").splitlines()
    (repository,) = yaml.safe_load((HOUSE / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert repository["repo"] == "local"
    for hook in repository["hooks"]:
        assert hook["entry"] in ci and hook["language"] == "system", hook


def test_issue_forms_have_what_github_asks_for():
    for path in (HOUSE / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"):
        form = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert form.keys() == {"name", "description", "body"}
        fields = form["body"]
        assert len({field["id"] for field in fields}) == len(fields)
        assert all(field["type"] == "textarea" and field["attributes"]["label"] for field in fields)


def test_the_citation_names_the_paper_and_this_version():
    citation = yaml.safe_load((HOUSE / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation.keys() >= {"cff-version", "message", "title", "authors", "version"}
    assert (citation["cff-version"], citation["version"]) == ("1.2.0", anytime_lct.__version__)
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Lee", "Hsieh", "Lee"]
    assert paper["title"] in " ".join((HOUSE / "README.md").read_text(encoding="utf-8").split())


def test_the_version_stands_in_one_place():
    project = tomllib.loads((HOUSE / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" in project["project"]["dynamic"] and "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "anytime_lct.__version__"}
    assert (
        not any("License" in row for row in project["project"]["classifiers"]) and "license" not in project["project"]
    )
