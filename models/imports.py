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
    """Return a network's file and the Python files of its packages or beside it that it imports, also through others.

    Imports are read from the source: those by computed names, and files other than Python, are not seen.

    >>> local_files(Path("networks/net.py"))                                        # doctest: +SKIP
    [Path('/home/me/networks/net.py'), Path('/home/me/networks/layers.py')]
    """
    path, root = path.resolve(), import_root(path)
    packages = [folder / "__init__.py" for folder in path.parents if folder.is_relative_to(root) and folder != root]
    folders, files, waiting = dict.fromkeys((root, path.parent)), list[Path](), [*packages, path]
    while waiting:
        file = waiting.pop()
        if file not in files:
            files.append(file)
            names = list(_imported(file, root))
            waiting += [local for folder in folders for name in names for local in _local(name, folder)]
    return files


def import_root(path: Path) -> Path:
    """Return the folder from which a file's imports start: that of its outermost package, or its own without one.

    >>> import_root(Path("src/nets/small.py"))                # where src/nets has an __init__.py   # doctest: +SKIP
    Path('/home/me/src')
    """
    folder = path.resolve().parent
    while (folder / "__init__.py").is_file() and folder != folder.parent:
        folder = folder.parent
    return folder


def module_name(path: Path) -> str | None:
    """Return the name of a file's module seen from `import_root`, or None for one outside of packages."""
    parts = path.resolve().relative_to(import_root(path)).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    is_packaged = (path.resolve().parent / "__init__.py").is_file()
    return ".".join(parts) if is_packaged and all(part.isidentifier() for part in parts) else None


@contextmanager
def importing_from(path: Path) -> Iterator[None]:
    """Let a file's imports find the modules beside it and of its packages within this block, rather than others.

    Modules of the same names that the user's program, or another network, has imported come back at the end.
    """
    folders, others = list(dict.fromkeys((path.resolve().parent, import_root(path)))), set[str]()
    for folder in folders:
        names = {entry.stem for entry in folder.iterdir() if entry.suffix == ".py" or entry.is_dir()} - {TOOLKIT}
        others |= {name for name, module in sys.modules.items() if _top(name) in names and _is_users(module, folder)}
    tops = {_top(name) for name in others}
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if _top(name) in tops}
    sys.path[:0] = map(str, folders)
    try:
        yield
    finally:
        for folder in folders:
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
