"""Tutorials and notebooks as a reader runs them, from top to bottom; they take long: pytest -m tutorial."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import sys
from pathlib import Path

import pytest
from forked_python import python
from pages import HOUSE, blocks
from programs import run

NOTEBOOKS = sorted((HOUSE / "docs" / "notebooks").glob("*.ipynb"))
TUTORIALS = sorted((HOUSE / "docs").glob("tutorial_*.md"))
SECONDS = 300
pytestmark = pytest.mark.tutorial


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_every_block_of_a_tutorial_runs_after_the_one_before(page: Path, tmp_path: Path):
    lines = {"bash": str, "python": lambda text: f"python -c {shlex.quote(text)}\n"}
    script = "".join(lines[block.kind](block.text) for block in blocks(page) if block.kind in lines)
    port, programs = free_port(), Path(python()).parent
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", "-euo", "pipefail", "-c", script.replace("8000", str(port))]
    done = run(command, SECONDS, cwd=tmp_path, env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    print(done.stdout)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.stem)
def test_a_notebook_runs_from_top_to_bottom(notebook: Path, tmp_path: Path):
    copy = shutil.copy(notebook, tmp_path)
    done = run([sys.executable, HOUSE / "docs" / "notebook.py", copy], SECONDS)
    assert done.returncode == 0, done.stderr
