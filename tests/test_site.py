"""The site of the pages: what is public, the equations and their code, and docstrings that read as they are meant."""

from __future__ import annotations

import ast
import json
import re
import sys
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest
from docutils import core
from pages import FILES, HOUSE, blocks

DOCS = HOUSE / "docs"
PAPER = (DOCS / "paper.md").read_text(encoding="utf-8")
NAMED = re.compile(r"\[`([\w.]+)`\]\(([\w./]+\.py)\)")
QUIET = {"report_level": 2, "halt_level": 5, "file_insertion_enabled": False}


@pytest.fixture(scope="module", autouse=True)
def modules_of_docs():
    """Let the tests import the modules that make the site."""
    sys.path.insert(0, str(DOCS))
    yield
    sys.path.remove(str(DOCS))


def public() -> set[str]:
    return set(re.findall(r"^\| \[`([\w.]+)`\]", (DOCS / "api.md").read_text(encoding="utf-8"), re.MULTILINE))


def test_the_page_of_the_api_is_up_to_date():
    api = import_module("api")
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), "write it anew with: python docs/api.py"


def test_what_the_pages_import_is_public():
    for page in (page for page in FILES if page.name != "CONTRIBUTING.md"):
        for block in blocks(page):
            for node in ast.walk(ast.parse(block.text)) if block.kind in ("python", "py") else ():
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("anytime_lct"):
                    for alias in node.names:
                        name = f"{node.module}.{alias.name}"
                        assert any(each == name or each.startswith(f"{name}.") for each in public()), (page.name, name)


@pytest.mark.parametrize("page", [page for page in FILES if NAMED.search(page.read_text(encoding="utf-8"))], ids=str)
def test_names_stand_in_the_files_that_their_links_lead_to(page: Path):
    for name, path in NAMED.findall(page.read_text(encoding="utf-8")):
        own = name.rpartition(".")[2]
        text = (page.parent / path).read_text(encoding="utf-8")
        assert re.search(rf"^(def|class) {own}\b", text, re.MULTILINE), (name, path)
        assert "." not in name or name in public(), name


def test_every_equation_of_the_paper_has_its_code_and_its_test():
    assert re.findall(r"\\tag\{(\d+)\}", PAPER) == [str(number) for number in range(1, 17)]
    for section in PAPER.split("\n## ")[1:]:
        assert "- **Code**: " in section and "- **Test**: " in section


def test_equations_become_mathml():
    equations = import_module("equations")
    for block, inline in re.findall(r"\$\$(.+?)\$\$|\$([^$]+)\$", PAPER):
        assert equations.tex2mathml(equations.TAG.sub("", block or inline)).startswith("<math")


def test_docstrings_read_as_they_are_meant():
    as_rst = import_module("docstrings").as_rst
    written = ["Run `f_i`s and c_i, *all* of x_.", "", "    f_1 -> f_2", "", ">>> 1 * 2", "2"]
    page = core.publish_doctree("\n".join(as_rst(written)), settings_overrides=QUIET)
    assert [node.tagname for node in page] == ["paragraph", "literal_block", "doctest_block"]
    assert page[0].astext() == "Run f_is and c_i, *all* of x_." and page[1].astext() == "f_1 -> f_2"


def test_no_docstring_breaks():
    as_rst = import_module("docstrings").as_rst
    for path in sorted(path for top in ("anytime_lct", "cli", "models") for path in (HOUSE / top).rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        texts = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, kinds)]
        problems = StringIO()
        lines = [line for text in texts for line in as_rst(text.splitlines())]
        core.publish_doctree("\n".join(lines), settings_overrides={**QUIET, "warning_stream": problems})
        assert not problems.getvalue(), (path, problems.getvalue())


@pytest.mark.parametrize("path", sorted((DOCS / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_have_their_outputs_and_nothing_of_a_machine(path: Path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    shown = import_module("notebook").as_markdown({"cells": cells})
    assert all(output["output_type"] in ("stream", "display_data") for cell in code for output in cell["outputs"])
    assert not re.search(r"/(tmp|home|root|usr)/|Warning|stderr", shown) and "data:image/png" in shown
    for target in re.findall(r"\]\((\.\.[\w./]+)\)", shown):
        assert (path.parent / target).exists(), target
