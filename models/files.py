"""Factories in the user's own files, named as path/to/file.py:FACTORY: of networks, and of data sets."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

import anytime_lct
from anytime_lct.errors import LCTError
from anytime_lct.models.imports import module_name


def file_of(name: str) -> Path | None:
    """Return the file of a network or a data set named as path/to/file.py:FACTORY, None for any other name.

    >>> file_of("my/net.py:make").name
    'net.py'
    """
    source = name.rpartition(":")[0]
    return Path(source) if source.endswith(".py") else None


def with_file(name: str, path: Path) -> str:
    """Return the name of a network or a data set whose file is at `path` instead."""
    return f"{path}:{name.rpartition(':')[2]}"


def without_folder(name: str) -> str:
    """Return a name without the folder of its file, if it has one.

    >>> without_folder("my/net.py:make"), without_folder("resnet20")
    ('net.py:make', 'resnet20')
    """
    file = file_of(name)
    return name if file is None else with_file(name, Path(file.name))


def name_of(factory: Callable[..., Any], what: str, error: type[LCTError]) -> str:
    """Return the name of a function or class that makes a `what`: path/to/file.py:FACTORY, or torchvision:NAME.

    Raises an `error` for one that another process cannot import, or whose import would run the program again.

    >>> name_of(torchvision.models.resnet18, "network", ModelError)                     # doctest: +SKIP
    'torchvision:resnet18'
    """
    name, module = getattr(factory, "__qualname__", ""), str(getattr(factory, "__module__", ""))
    for library in ("torchvision", "timm"):
        if module.startswith(f"{library}.models"):
            return f"{library}:{name}"
    try:
        file = Path(inspect.getsourcefile(factory) or "")
    except TypeError:
        file = Path()
    if not file.is_file() or not name.isidentifier():
        raise error(
            f"Expected a function or class at the top of a Python file, which makes the {what} in another process too, "
            f"got {factory!r}; write one into a file."
        )
    program = getattr(sys.modules["__main__"], "__file__", None)
    if program is not None and Path(program).resolve() == file.resolve() and not _is_guarded(file):
        raise error(
            f"Expected '{file.name}' to run its training below `if __name__ == \"__main__\":`, as other processes "
            f"import {name} from it; put the loop there, or {name} into a file of its own."
        )
    return f"{file.resolve()}:{name}"


def _is_guarded(file: Path) -> bool:
    """Whether a program tells by its name if it is run or imported."""
    tests = (node.test for node in ast.parse(file.read_bytes()).body if isinstance(node, ast.If))
    return any(isinstance(name, ast.Name) and name.id == "__name__" for test in tests for name in ast.walk(test))


def load_factory(name: str, what: str, error: type[LCTError]) -> Callable[..., Any]:
    """Import the file of path/to/file.py:FACTORY and return the factory, a function or a class that makes a `what`.

    Call it within `imports.importing_from`. Raises an `error` where there is none, and ModuleNotFoundError
    for a module that the file imports.
    """
    path, attribute = Path(name.rpartition(":")[0]), name.rpartition(":")[2]
    module = _module(path, what, error)
    factory = getattr(module, attribute, None)
    if not callable(factory):
        own = [key for key, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
        near = difflib.get_close_matches(attribute, own, n=3) or [key for key in own if key[0] != "_"][:5]
        remedy = f"did you mean {' or '.join(near)}?" if near else "write one."
        raise error(
            f"Expected a function or class '{attribute}' in '{path}' that builds the {what}, got none; {remedy}"
        )
    return factory


def required(factory: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters of a factory that have no default."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(factory).parameters
    return [key for key, one in parameters.items() if one.kind in kinds and one.default is inspect.Parameter.empty]


def reason(error: Exception) -> str:
    """Return the first line of an error, and the last line of the user's own code in its traceback.

    An error without words has the last line of any code.
    """
    text = next(iter(str(error).strip().splitlines()), "")
    libraries = (
        str(Path(torch.__file__).parent.parent),
        sysconfig.get_paths()["stdlib"],
        str(Path(anytime_lct.__file__).parent),
        str(Path(__file__).parent),
        "<",
    )
    trace = traceback.extract_tb(error.__traceback__)
    frames = [f for f in trace if not f.filename.startswith(libraries)] or ([] if text else trace)
    if not text or isinstance(error, KeyError):
        text = f"{type(error).__name__} {text}".strip()
    return text.rstrip(".!") + (f" (at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line})" if frames else "")


def _module(path: Path, what: str, error: type[LCTError]) -> Any:
    """Import a file, once per process: as the module of its package, or as a package of its own.

    So `from .layers import ..` finds the file beside it.
    """
    name = module_name(path)
    key = name or f"anytime_lct_file_{path.resolve()}".replace(".", "_")
    if name is not None:
        try:
            return import_module(name)
        except ModuleNotFoundError:
            raise
        except Exception as failure:
            raise error(f"The {what}'s file '{path}' cannot be read: {reason(failure)}.") from failure
    if key not in sys.modules:
        folder = str(path.resolve().parent)
        spec = importlib.util.spec_from_file_location(key, path, submodule_search_locations=[folder])
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[key] = module
        try:
            spec.loader.exec_module(module)
        except Exception as failure:
            del sys.modules[key]
            if isinstance(failure, ModuleNotFoundError):
                raise
            raise error(f"The {what}'s file '{path}' cannot be read: {reason(failure)}.") from failure
    return sys.modules[key]
