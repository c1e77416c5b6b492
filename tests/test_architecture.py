"""The house: imports go down only, each foreign library has one owner, and the runtime needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
FLOORS = {
    0: {
        "errors", "stopwatch", "budget", "profile", "selector", "thresholds", "bundle", "recipe", "defaults", "pixels",
        "__init__",
    },
    1: {
        "task", "lct", "tracing", "blocks", "counting", "partition", "costs", "placement", "critics", "network",
        "evaluation", "checkpoint", "run_folder", "learner", "schedule", "models", "descent", "journal", "sequence",
        "pretrained", "shares",
    },
    2: {"data", "training", "baselines", "analysis", "export"},
    3: {"cli", "experiments"},
}  # fmt: skip
FLOOR = {room: floor for floor, rooms in FLOORS.items() for room in rooms} | {"runtime": -1, "serving": -1}
HEAVY = {
    "torch",
    "torchvision",
    "fvcore",
    "onnx",
    "onnxscript",
    "sklearn",
    "scipy",
    "matplotlib",
    "safetensors",
    "timm",
}
OWNERS = {
    "fvcore": {"analysis/complexity.py"},
    "onnxscript": {"export"},
    "onnx": {"export"},
    "onnxruntime": {"export", "runtime"},
    "starlette": {"serving/app.py"},
    "uvicorn": {"serving/server.py", "serving/connection.py"},
    "prometheus_client": {"serving/metrics.py", "serving/workers.py"},
    "typer": {"cli"},
    "rich": {"cli"},
    "safetensors": {"checkpoint.py"},
    "sklearn": {"data/images.py"},
    "timm": {"models/others.py", "models/weights.py"},
    "matplotlib": {"analysis/picture.py", "analysis/descent_picture.py", "experiments/pictures.py"},
}
APART = {"training", "baselines", "analysis", "export"}


def files() -> list[tuple[str, Path]]:
    """Every file of the package under its path in the package: cli and models lie at the top of the house."""
    inside = [(str(path.relative_to(HOUSE / "anytime_lct")), path) for path in (HOUSE / "anytime_lct").rglob("*.py")]
    return inside + [
        (str(path.relative_to(HOUSE)), path) for top in ("cli", "models") for path in (HOUSE / top).rglob("*.py")
    ]


FILES = files()


def room(name: str) -> str:
    return name.partition("/")[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Modules that a file imports when it runs; what is under TYPE_CHECKING is not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def rooms_of(names: set[str]) -> set[str]:
    return {name.split(".")[1] for name in names if name.startswith("anytime_lct.")} - {"__version__"}


@pytest.mark.parametrize(("name", "path"), FILES, ids=[name for name, _ in FILES])
def test_imports_go_down_only(name, path):
    own, names = room(name), imports(path)
    assert own in FLOOR, f"'{own}' has no floor"
    for other in rooms_of(names) - {own}:
        if own == "runtime":
            assert FLOOR[other] == 0, f"the runtime imports {other}"
        elif own == "serving":
            assert FLOOR[other] == 0 or other == "runtime", f"serving imports {other}"
        elif own == "models":
            assert other == "errors", f"models imports {other}"
        else:
            assert FLOOR[other] <= FLOOR[own], f"floor {FLOOR[own]} imports {other} above it"
            assert not {own, other} <= APART, f"{own} imports {other} beside it"
    top = {imported.partition(".")[0] for imported in names}
    if own in ("runtime", "serving") or FLOOR[own] == 0:
        assert not top & HEAVY
    for library in top & OWNERS.keys():
        assert any(name.startswith(owner) for owner in OWNERS[library]), f"{library} belongs to {OWNERS[library]}"


@pytest.mark.parametrize("name", [name for name, _ in FILES if name.startswith("cli/")])
def test_commands_import_inside_their_bodies(name):
    code = f"import sys, anytime_lct.cli.{name.removeprefix('cli/').removesuffix('.py')}; print(*sorted(sys.modules))"
    if name.endswith("__init__.py"):
        return
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {module.partition(".")[0] for module in loaded} & (HEAVY | {"numpy", "onnxruntime"})


@pytest.mark.parametrize("module", ["runtime", "serving.server", "serving.workers"])
def test_what_answers_loads_nothing_that_trains(module):
    code = f"import sys, anytime_lct.{module}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {module.partition(".")[0] for module in loaded} & HEAVY


def test_every_file_says_what_it_is_for_and_fits_in_a_head():
    for name, path in FILES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 350, f"{name} is too long for one reading; split it"
        if text.strip():
            assert ast.get_docstring(ast.parse(text)), f"{name} does not open with its purpose"
