"""The site of these pages, by Sphinx from the root of the tree, so that links are the same on GitHub and on the site.

python -m sphinx -W -c docs . build/site        writes build/site/index.html
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from posixpath import normpath
from typing import Any

HOUSE = Path(__file__).parent.parent
sys.path.insert(0, str(HOUSE / "docs"))

import docstrings  # noqa: E402
import equations  # noqa: E402
from notebook import Notebook  # noqa: E402

from anytime_lct import __version__  # noqa: E402

project, release = "anytime-lct", __version__
html_title, html_theme = f"{project} {release}", "furo"
html_math_renderer = "mathml"
html_copy_source = html_show_copyright = False
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]
root_doc, INDEX, API = "README", HOUSE / "docs" / "README.md", "docs/api"
SOURCES = ("README.md", "CHANGELOG.md", "docs", "benchmarks")
include_patterns = ["README.md", "CHANGELOG.md", "docs/**", "benchmarks/results/**"]
exclude_patterns = [path.name for path in HOUSE.iterdir() if path.name not in SOURCES]
suppress_warnings = ["toc.not_included"]  # the reports in benchmarks/results, to which pages link
highlight_language = "text"

myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]

autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": "model_config"}
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100

SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
PAGE = re.compile(r"^\| \[([\w./]+)\]\(\1\) \|", re.MULTILINE)
PUBLIC = re.compile(r"^\| \[`([\w.]+)`\]", re.MULTILINE)
LINK = re.compile(r"\[`(anytime_lct\.[\w.]+)`\]\([\w./]+\.py\)")


def navigation() -> Iterator[str]:
    """Yield a hidden table of contents for each section of docs/README.md."""
    for caption, body in SECTION.findall(INDEX.read_text(encoding="utf-8")):
        pages = "\n".join(str(Path(normpath(f"docs/{page}")).with_suffix("")) for page in PAGE.findall(body))
        yield f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def written_out(name: str) -> str:
    """Return the directive that writes a public name out from its docstring."""
    module, _, own = name.rpartition(".")
    return f".. auto{'class' if own[0].isupper() else 'function'}:: {module}::{own}"


def read_source(app: Any, page: str, source: list[str]) -> None:
    """Add what only the site has: the navigation, the API from docstrings, and links into it instead of to files."""
    if page == root_doc:
        source[0] += "".join(navigation())
    elif page == API:

        def with_names(section: re.Match[str]) -> str:
            directives = "\n".join(map(written_out, PUBLIC.findall(section[2])))
            return f"{section[0]}\n```{{eval-rst}}\n{directives}\n```\n\n"

        source[0] = SECTION.sub(with_names, source[0])
    source[0] = LINK.sub(r"{py:obj}`\1`", source[0])


def read_docstring(app: Any, kind: str, name: str, documented: Any, options: Any, lines: list[str]) -> None:
    lines[:] = docstrings.as_rst(lines)


def write_index(app: Any, error: Exception | None) -> None:
    """Let the folder of the site open at README, whose name it keeps."""
    if error is None and app.builder.format == "html":
        page = f'<meta charset="utf-8"><meta http-equiv="refresh" content="0; url={root_doc}.html">\n'
        Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


def setup(app: Any) -> None:
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(Notebook)
    app.add_html_math_renderer("mathml", (equations.visit_inline, None), (equations.visit_block, None))
    app.connect("source-read", read_source)
    app.connect("autodoc-process-docstring", read_docstring)
    app.connect("build-finished", write_index)
