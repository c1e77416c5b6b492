"""What messages and pages advise exists: every flag and every key of a recipe that the package's texts name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pages
import pytest
import typer

from anytime_lct.cli.main import VERBS, app
from anytime_lct.models import networks
from anytime_lct.recipes import reading
from anytime_lct.verbs import reference

HOUSE = Path(__file__).parent.parent
SOURCES = sorted(path for top in ("anytime_lct", "cli", "models") for path in (HOUSE / top).rglob("*.py"))
FILES = [*SOURCES, *(page for page in pages.FILES if page.name != "house.md")]
FLAGS = {
    verb: {name for p in command.params for name in p.opts} | {"--help", "-h"}
    for verb, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
}
# Of torchrun, hf and pre-commit, and of the program itself.
FOREIGN = {
    "--nnodes", "--nproc-per-node", "--repo-type", "--local-dir", "--hook-type", "--version", "--install-completion",
}  # fmt: skip
KEYS = {key.name for key in reference(reading.complete({}))} | {
    f"model.{option}" for name in networks.NAMES for option in networks.default_options(name)
}
TABLES = {key.partition(".")[0] for key in KEYS}
KEY = re.compile(rf"(?<![\w./])({'|'.join(sorted(TABLES))})\.(?!safetensors|py\b|txt\b)([a-z_]+)(?![\w.(/])")


def texts(path: Path) -> list[str]:
    """All strings of a file but its docstrings, what an f-string fills in as {}; of a page its code within prose."""
    if path.suffix == ".md":
        return pages.inline_code(path)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    strings: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
            strings.append("".join(map(str, parts)))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            strings.append(node.value)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node, False)):
            inside |= {id(node.body[0].value)}  # type: ignore[attr-defined]
            is_help = path.parent.name == "cli" and isinstance(node, ast.FunctionDef) and node.name in VERBS
            strings += [text] if is_help else []
    return strings


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HOUSE)))
def test_flags_and_keys_in_messages_exist(path):
    every = set().union(*FLAGS.values()) | FOREIGN
    for text in texts(path):
        for flag in re.findall(r"(?<![\w-])(?<!var\()--[a-z][a-z0-9-]*", text):
            assert flag in every, f"{flag} in: {text}"
        for verb, options in re.findall(r"(?<!newer )anytime-lct ([a-z]+)((?: [^;,.]*)?)", text):
            assert verb in FLAGS, f"{verb} in: {text}"
            for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", options):
                assert flag in FLAGS[verb], f"{verb} has no {flag}, in: {text}"
        for table, entry in KEY.findall(text) if " " in text or path.suffix == ".md" else ():
            assert f"{table}.{entry}" in KEYS, f"{table}.{entry} in: {text}"
