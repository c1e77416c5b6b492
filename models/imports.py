"""The imports of a user's network: modules beside its file, which go with it where it is copied."""

from __future__ import annotations

import ast
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

TOOLKIT = "anytime_lct"


def local_files(path: Path) -> list[Path]:
    """Return a network's file and the Python files beside it that it imports, directly or through others.

    Imports are read from the source: those by computed names, and files other than Python, are not seen.

    >>> local_files(Path("networks/net.py"))                                        # doctest: +SKIP
    [Path('/home/me/networks/net.py'), Path('/home/me/networks/layers.py')]
    """
    folder, files, waiting = path.resolve().parent, list[Path](), [path.resolve()]
    while waiting:
        file = waiting.pop()
        if file not in files:
            files.append(file)
            waiting += [local for name in _imported(file, folder) for local in _local(name, folder)]
    return files


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    """Let imports find the modules of a folder within this block, rather than those of other folders by their names.

    Modules of the same names that the user's program, or another network, has imported come back at the end.
    """
    names = {entry.stem for entry in folder.iterdir() if entry.suffix == ".py" or entry.is_dir()} - {TOOLKIT}
    others = {name for name, module in sys.modules.items() if _top(name) in names and _is_users(module, folder)}
    tops = {_top(name) for name in others}
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if _top(name) in tops}
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if hidden:
            for name in [name for name in sys.modules if _top(name) in tops]:
                del sys.modules[name]
            sys.modules.update(hidden)


def _is_users(module: ModuleType, folder: Path) -> bool:
    """Whether a module is from another folder than `folder`, and not an installed one."""
    file = getattr(module, "__file__", None)
    paths = sysconfig.get_paths()
    installed = [paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")]
    return file is not None and not any(Path(file).is_relative_to(own) for own in (*installed, folder))


def _imported(file: Path, folder: Path) -> Iterator[str]:
    """Yield the full names, seen from `folder`, of all that a file may import."""
    package = file.relative_to(folder).parent.parts
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # a file that no import has run
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}".lstrip(".") for alias in node.names)


def _local(name: str, folder: Path) -> Iterator[Path]:
    """Yield the files in `folder` that an import of a name runs: its packages, and the module itself."""
    if _top(name) in (TOOLKIT, *sys.stdlib_module_names):
        return
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        path = folder.joinpath(*parts[:count])
        yield from (file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file())


def _top(name: str) -> str:
    return name.partition(".")[0]
