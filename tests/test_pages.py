"""README and docs: their commands and code run as they stand, their links and paths lead somewhere, README is short."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import typer
from filelock import FileLock
from forked_python import python
from pages import FILES, HOUSE, Block, blocks, commands, inline_code, prose
from programs import run
from typer.testing import CliRunner

from anytime_lct.cli.main import PANELS, VERBS, app

README = FILES[0].read_text(encoding="utf-8")
KINDS = {"", "bash", "python", "console", "py", "nginx"}
# The blocks that run, by page and heading; those of serving.md run against a server (test_serving_process), those of
# tutorials in test_tutorials and .ci/tutorial.py.
BLOCKS: dict[str, list[Block]] = {}
for page in FILES:
    for block in blocks(page):
        if block.kind in ("bash", "python") and not page.name.startswith(("serving", "tutorial")):
            BLOCKS.setdefault(f"{page.stem}: {block.heading}", []).append(block)
# The section that leaves behind what another one reads.
BEFORE = {
    "README: Choose": "README: anytime-lct", "README: Answer": "README: Choose", "README: Python": "README: Answer",
    "answers: select": "README: Choose", "answers: export": "README: Choose", "answers: calibrate": "README: Answer",
    "answers: predict": "answers: calibrate", "python: Answer": "answers: calibrate",
    "lightning: Exits for a checkpoint": "lightning: LCT in a LightningModule",
}  # fmt: skip
ANEW = ("anytime-lct inspect", "anytime-lct thresholds")  # which no other test starts in new processes
SECONDS = 120


def ran(section: str, base: Path) -> Path:
    """Return the folder in which a section, and before it what it reads, has run: by whichever process is first."""
    folder = base / re.sub(r"\W+", "-", section)
    outcome = folder.with_suffix(".failed")
    with FileLock(folder.with_suffix(".lock")):
        if outcome.exists():
            pytest.fail(f"The section '{section}' fails:\n{outcome.read_text(encoding='utf-8')}")
        if folder.exists():
            return folder
        started = ran(BEFORE[section], base) if section in BEFORE else None
        part = folder.with_suffix(".part")
        if started is None:
            part.mkdir()
        else:
            shutil.copytree(started, part)
        for _, kind, block in BLOCKS[section]:
            programs = Path(sys.executable if block.startswith(ANEW) else python()).parent
            environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
            command = (
                ["bash", "-euo", "pipefail", "-c", block] if kind == "bash" else [programs / "python", "-c", block]
            )
            done = run(command, SECONDS, cwd=part, env=environment)
            if done.returncode != 0:
                outcome.write_text(f"{block}\n{done.stdout}\n{done.stderr}", encoding="utf-8")
                pytest.fail(f"The section '{section}' fails:\n{block}\n{done.stdout}\n{done.stderr}")
        part.rename(folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    """A folder that all processes of this run of the tests share."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "pages"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.mark.parametrize("section", BLOCKS)
def test_every_block_runs_as_it_stands(section: str, base: Path):
    """`console` blocks show installing and long runs and are not run; `bash` and `python` blocks are."""
    assert ran(section, base).is_dir()


def test_quickstart_has_four_exits_that_differ(base: Path):
    """Deeper exits are better on validation, so that each of its four budgets is answered by another exit."""
    profile = json.loads((ran("README: anytime-lct", base) / "quickstart" / "run" / "profile.json").read_text("utf-8"))
    values = [each["validation"]["value"] for each in profile["exits"]]
    assert len(values) == 4 and values == sorted(set(values))


def test_the_sections_that_run_are_these():
    assert list(BLOCKS) == [
        "README: anytime-lct", "README: Choose", "README: Answer", "README: Reproduce", "README: Python",
        "answers: select", "answers: export", "answers: calibrate", "answers: predict",
        "lightning: LCT in a LightningModule", "lightning: Exits for a checkpoint",
        "python: Answer", "python: Your own network and data", "python: The rule",
        "training: Your network", "training: A run", "training: Trained weights", "training: Several workers",
        "training: Other methods", "training: Sufficient descent",
    ]  # fmt: skip
    assert {block.kind for page in FILES for block in blocks(page)} == KINDS


def test_every_command_has_an_example_here_and_in_its_help():
    for verb in VERBS:
        assert re.search(rf"^anytime-lct {verb}\b", README, re.MULTILINE), f"the README shows no 'anytime-lct {verb}'"
        help_text = CliRunner().invoke(app, [verb, "--help"]).stdout
        assert f"Example: anytime-lct {verb}" in " ".join(help_text.split())
        assert "--json" in help_text


@pytest.mark.parametrize("page", FILES, ids=lambda page: page.name)
def test_every_command_parses_with_its_flags(page: Path):
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for block in blocks(page):
        for verb, *arguments in commands(block.text) if block.kind in ("bash", "console") else ():
            with known[verb].make_context(verb, list(arguments)) as context:
                assert not context.args, (verb, arguments)


def test_the_readme_groups_the_verbs_as_their_help_does():
    verbs = README.partition("## The verbs\n")[2].partition("\n## ")[0]
    groups = verbs.split("\n### ")[1:]
    assert [group.partition("\n")[0] for group in groups] == list(PANELS)[1:]
    for group, panel in zip(groups, list(PANELS)[1:], strict=True):
        assert set(re.findall(r"^- \*\*(\w+)\*\* ", group, re.MULTILINE)) == set(PANELS[panel])


def test_commands_are_split_as_a_shell_does():
    text = "A=1 anytime-lct train --set 'a=b | c' \\\n  --x > out && anytime-lct serve y\npip install anytime-lct-x\n"
    assert list(commands(text)) == [["train", "--set", "a=b | c", "--x"], ["serve", "y"]]


@pytest.mark.parametrize("page", FILES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = (page.parent / path) if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target
    for code in inline_code(page):
        for path in re.findall(r"^(?:python )?((?:benchmarks|tests|docs|anytime_lct)/[\w./*-]+)", code):
            assert list(HOUSE.glob(path)), path


def anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_index_has_every_page():
    index = HOUSE / "docs" / "README.md"
    listed = re.findall(r"^\| \[([\w.]+)\]\(\1\) \|", index.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == [page.name for page in FILES if page.parent == index.parent and page != index]
    assert "(docs/README.md)" in README


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 220 and len(README.encode()) <= 12_288


def test_nothing_is_installed_from_an_index():
    """No index has this package: extras are installed from a checkout."""
    sources = [path for top in ("anytime_lct", "cli", "models") for path in (HOUSE / top).rglob("*.py")]
    for path in (*FILES, *sources):
        assert not re.search(r"(anytime-lct\[|pip install anytime-lct)", path.read_text(encoding="utf-8")), path


def test_the_tree_names_every_room():
    tree = README.partition("## The tree")[2].partition("```")[2].partition("```")[0]
    listed = set(re.findall(r"^\s*([\w.]+)/ ", tree, re.MULTILINE)) | {"anytime_lct"}
    rooms = {path.parent.name for path in (HOUSE / "anytime_lct").rglob("__init__.py")}
    assert listed == rooms | {"models", "cli", "benchmarks", "docs", "tests"}
