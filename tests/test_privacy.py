"""Nothing is written or sent that nobody asked for: onnxruntime's telemetry is off before its first import."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from bundles import write_image_bundle

HOUSE = Path(__file__).parent.parent
VARIABLE = "ORT_DISABLE_TELEMETRY"
COMMANDS = {
    "predict": "from anytime_lct.cli.main import run; run()",
    "import": f"import anytime_lct.serving.server, os; assert os.environ['{VARIABLE}'] == '1'",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_fresh_home_stays_empty(tmp_path, name):
    """onnxruntime writes its device id and its queue of events before it looks a host up: neither is there."""
    (tmp_path / "home").mkdir()
    write_image_bundle(tmp_path / "tiny")
    np.save(tmp_path / "x.npy", np.zeros((1, 1, 6, 6), np.float32))
    environment = {key: value for key, value in os.environ.items() if key != VARIABLE and not key.startswith("XDG_")}
    command = [sys.executable, "-c", COMMANDS[name], "predict", str(tmp_path / "tiny"), str(tmp_path / "x.npy")]
    subprocess.run(
        command, check=True, capture_output=True, timeout=60, env=environment | {"HOME": str(tmp_path / "home")}
    )
    assert not [path for path in (tmp_path / "home").rglob("*") if "onnxruntime" in str(path)]


def test_whoever_wants_telemetry_may_have_it():
    code = f"import os, anytime_lct; print(os.environ['{VARIABLE}'])"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, env=os.environ | {VARIABLE: "0"}
    )
    assert done.stdout == "0\n"


@pytest.mark.parametrize("path", sorted((HOUSE / "benchmarks").glob("*.py")), ids=lambda path: path.name)
def test_benchmarks_import_the_package_first(path):
    """At the top of a file, imports of other packages come before those of this one, which sets the variable."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            assert not any(name.partition(".")[0] == "onnxruntime" for name in names)
