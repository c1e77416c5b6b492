"""The house: imports go down only and in no circle, each foreign library has one owner, the runtime needs no torch."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

HOUSE = Path(__file__).parent.parent
# A room imports from the floors below its own, and none from a room beside it.
FLOORS = (
    {"errors"},
    {"disk", "stopwatch", "pixels", "texts"},
    {"exits", "recipes", "models"},
    {"lct", "task", "modes", "runtime"},
    {"counting", "descent", "serving"},
    {"cutting"},
    {"critics"},
    {"network"},
    {"evaluation", "data", "savings"},
    {"run_folder"},
    {"training", "analysis"},
    {"export"},
    {"verbs", "reproduce"},
    {"cli"},
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Rooms that see less than what lies below them.
SEES = {
    "models": {"errors"},
    "runtime": FLOORS[0] | FLOORS[1] | {"exits"},
    "serving": FLOORS[0] | FLOORS[1] | {"exits", "runtime"},
}
TORCHLESS = FLOORS[0] | FLOORS[1] | {"exits", "recipes", "runtime", "serving"}
HEAVY = {
    "torch", "torchvision", "fvcore", "onnx", "onnxscript", "sklearn", "scipy", "matplotlib", "safetensors", "timm",
}  # fmt: skip
OWNERS = {
    "torch.distributed": {"training/processes/", "training/methods/backprop.py", "training/methods/pipeline.py"},
    "torch.onnx": {"export/"},
    "torch.fx": {"cutting/"},
    "fvcore": {"counting.py"},
    "onnxscript": {"export/"},
    "onnx": {"export/"},
    "onnxruntime": {"export/parity.py", "export/quantise.py", "runtime/"},
    "openvino": {"runtime/openvino_backend.py"},
    "starlette": {"serving/http/"},
    "prometheus_client": {"serving/metrics.py"},
    "typer": {"cli/"},
    "rich": {"cli/"},
    "safetensors": {"run_folder/checkpoint.py"},
    "sklearn": {"data/"},
    "datasets": {"data/tables.py"},
    "webdataset": {"data/shards.py"},
    "timm": {"models/others.py", "models/weights.py"},
    "optuna": {"verbs/sweep.py"},
    "mlflow": {"training/logs.py"},
    "wandb": {"training/logs.py"},
    "matplotlib": {"analysis/picture.py", "reproduce/pictures.py"},
}
MOST_LINES, MOST_PARAMETERS, MOST_MODULES = 300, 8, 14
# The names that users import from a room itself; every other `__init__` holds its docstring alone.
DOORS = {"runtime", "verbs"}


def package_files() -> dict[str, Path]:
    """Every file of the package by its path in the package: cli and models lie at the top of the house."""
    inside = [(path.relative_to(HOUSE / "anytime_lct"), path) for path in (HOUSE / "anytime_lct").rglob("*.py")]
    tops = [(path.relative_to(HOUSE), path) for top in ("cli", "models") for path in (HOUSE / top).rglob("*.py")]
    return {name.as_posix(): path for name, path in sorted(inside + tops)}


FILES = package_files()
MODULES = {name.removesuffix(".py").removesuffix("/__init__").replace("/", "."): name for name in FILES}
NAMES = [name for name in FILES if name != "__init__.py"]


def room(name: str) -> str:
    return name.partition("/")[0].removesuffix(".py")


@cache
def parsed(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


@cache
def imported(name: str) -> frozenset[str]:
    """Full names of what a file imports anywhere in it, under TYPE_CHECKING too."""
    names: set[str] = set()
    package = ["anytime_lct", *Path(name).parts[:-1]]
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])
            module = base if node.level else node.module
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@cache
def neighbours(name: str) -> frozenset[str]:
    """The package's own files that a file imports from; a name given by a room's door counts as the file behind it."""
    files: set[str] = set()
    for full in imported(name):
        parts = full.split(".")
        if parts[0] != "anytime_lct":
            continue
        modules = (".".join(parts[1:end]) for end in range(len(parts), 1, -1))
        file = next((MODULES[module] for module in modules if module in MODULES), "__init__.py")
        if file.endswith("/__init__.py"):
            doors = {each for each in imported(file) if each.rpartition(".")[2] == parts[-1]}
            assert doors, f"{name} imports {full}, which {file} does not give"
            module = doors.pop().removeprefix("anytime_lct.").rpartition(".")[0]
            file = MODULES[module]
        files.add(file)
    return frozenset(files - {"__init__.py"})


@pytest.mark.parametrize("name", NAMES)
def test_imports_go_down_only(name):
    own = room(name)
    assert own in FLOOR, f"'{own}' has no floor"
    below = SEES.get(own, {each for each, floor in FLOOR.items() if floor < FLOOR[own]})
    for file in neighbours(name):
        assert room(file) in below | {own}, f"{name} imports {file}, which is not below it"
    foreign = {full for full in imported(name) if not full.startswith("anytime_lct")}
    if own in TORCHLESS:
        assert not {full.partition(".")[0] for full in foreign} & HEAVY
    for library, owners in OWNERS.items():
        if any(full == library or full.startswith(f"{library}.") for full in foreign):
            assert name.startswith(tuple(owners)), f"{name} imports {library}, which belongs to {owners}"


def test_no_file_imports_itself_round_a_circle():
    """Files are taken away whose imports are all gone already; what is left would be a circle."""
    left = {name: set(neighbours(name)) for name in NAMES if not name.endswith("__init__.py")}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"a circle among {sorted(left)}"


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("cli/")])
def test_commands_import_inside_their_bodies(name):
    if name.endswith("__init__.py"):
        return
    code = f"import sys, anytime_lct.cli.{name.removeprefix('cli/').removesuffix('.py')}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {module.partition(".")[0] for module in loaded} & (HEAVY | {"numpy", "onnxruntime"})


@pytest.mark.parametrize("module", ["runtime", "serving.server", "serving.workers"])
def test_what_answers_loads_nothing_that_trains(module):
    code = f"import sys, anytime_lct.{module}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {module.partition(".")[0] for module in loaded} & HEAVY


def test_every_file_says_what_it_is_for_and_fits_in_a_head():
    for name in NAMES:
        lines = FILES[name].read_text(encoding="utf-8").splitlines()
        assert len(lines) <= MOST_LINES, f"{name} has {len(lines)} lines; split it"
        assert ast.get_docstring(parsed(name)), f"{name} does not open with its purpose"


def test_no_other_file_of_the_package_is_longer_than_a_source_file_may_be():
    for path in (HOUSE / "anytime_lct").rglob("*"):
        if path.is_file() and path.suffix in (".toml", ".html", ".css", ".js"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES, path


def test_no_two_classes_have_one_name():
    seen: dict[str, str] = {}
    for name in NAMES:
        for node in ast.walk(parsed(name)):
            if isinstance(node, ast.ClassDef):
                own = node.name.lstrip("_")
                assert own not in seen, f"{name} and {seen[own]} both have a class {own}"
                seen[own] = name


def test_a_room_s_init_holds_no_code():
    for name in FILES:
        if not name.endswith("__init__.py") or name == "__init__.py":
            continue
        rest = parsed(name).body[1:]
        if name.removesuffix("/__init__.py") in DOORS:
            rest = [node for node in rest if not isinstance(node, ast.ImportFrom | ast.Assign)]
        assert not rest, f"{name} holds code"


def test_no_function_takes_more_than_a_head_can_hold():
    """Constructors of dataclasses write no parameters; the commands of typer, whose parameters are flags, are apart."""
    for name in NAMES:
        for node in ast.walk(parsed(name)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if name.startswith("cli/") and node.name == name.removeprefix("cli/").removesuffix(".py"):
                continue
            arguments = [each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            taken = [argument for argument in arguments if argument not in ("self", "cls")]
            assert len(taken) <= MOST_PARAMETERS, f"{name}:{node.lineno} {node.name} takes {len(taken)} parameters"


def test_few_modules_lie_directly_under_the_package():
    assert len([path for path in (HOUSE / "anytime_lct").glob("*.py") if path.name != "__init__.py"]) <= MOST_MODULES


def test_the_page_of_the_house_is_that_of_the_files():
    spec = importlib.util.spec_from_file_location("house", HOUSE / "docs" / "house.py")
    assert spec is not None and spec.loader is not None
    house = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(house)
    assert house.PAGE.read_text(encoding="utf-8") == house.page(), "write it anew with: python docs/house.py"
