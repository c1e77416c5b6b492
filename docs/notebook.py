"""Notebooks: run anew from top to bottom, and shown on the site as the pages that they are.

python docs/notebook.py docs/notebooks/*.ipynb        runs each in an empty folder, and writes its outputs into it
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from myst_parser.parsers.sphinx_ import MystParser


class Notebook(MystParser):
    """Reads the JSON of a notebook as the Markdown that it shows."""

    supported = ("notebook",)

    def parse(self, inputstring: str, document: Any) -> None:
        super().parse(as_markdown(json.loads(inputstring)), document)


def as_markdown(notebook: dict[str, Any]) -> str:
    """Return the cells of a notebook, format 4, with the text and the pictures that code cells ended with."""
    parts: list[str] = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        parts += [_shown(output) for output in cell.get("outputs", ())]
    return "\n\n".join(parts) + "\n"


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f"![output](data:image/png;base64,{''.join(''.join(data['image/png']).split())})"
    text = "".join(output.get("text", data.get("text/plain", ())))
    return f"```text\n{text.rstrip()}\n```"


def run(path: Path) -> None:
    """Run a notebook and write it with its outputs, without the times at which they came."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        NotebookClient(notebook, resources={"metadata": {"path": folder}}, record_timing=False).execute()
    nbformat.write(notebook, path)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        run(Path(argument))
