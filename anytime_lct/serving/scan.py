"""The bundles that lie in a folder, by name and version, and the folders that cannot be served."""

from __future__ import annotations

import re
from pathlib import Path

from anytime_lct.errors import BundleError, LCTError
from anytime_lct.exits.bundle import is_bundle

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
VERSION = re.compile(r"[1-9][0-9]{0,8}")
Key = tuple[str, str]  # name and version
Problems = dict[Key, LCTError]  # why a model is not served as it lies on the disk


def scan(path: Path) -> tuple[dict[Key, Path], Problems]:
    """Find the bundles: the folder itself, or those in it, and why others there cannot be served.

    Raises BundleError where there is none at all.

    >>> scan(Path("bundles"))  # doctest: +SKIP
    ({('digits', '1'): PosixPath('bundles/digits')}, {})
    """
    if is_bundle(path):
        return {(_name(path.resolve()), "1"): path}, {}
    paths: dict[Key, Path] = {}
    problems: Problems = {}
    for folder in _folders(path):
        try:
            versions = {"1": folder} if is_bundle(folder) else _versions(folder)
            for version, bundle in versions.items():
                key = (_name(folder), version)
                if key in paths:
                    raise BundleError(
                        f"Expected one bundle named '{key[0]}', got '{paths[key]}' and '{bundle}'; rename one."
                    )
                paths[key] = bundle
        except BundleError as error:
            problems[folder.name.removesuffix(".bundle"), "1"] = error
        except OSError as error:
            problems[folder.name.removesuffix(".bundle"), "1"] = _unreadable(folder, error)
    if not paths and not problems:
        raise BundleError(
            f"Expected a bundle or a folder of bundles, got '{path}', which has none; write one with: "
            "anytime-lct export RUN."
        )
    return {key: bundle for key, bundle in paths.items() if key not in problems}, problems


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    try:  # names that start with a dot are of bundles that are being written
        return sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError as error:
        raise _unreadable(path, error) from None


def _versions(folder: Path) -> dict[str, Path]:
    numbered = sorted(inner for inner in folder.iterdir() if VERSION.fullmatch(inner.name))
    return {inner.name: inner for inner in numbered if is_bundle(inner)}


def _name(folder: Path) -> str:
    name = folder.name.removesuffix(".bundle")
    if not NAME.fullmatch(name):
        raise BundleError(
            f"Expected a bundle's folder named in letters, digits, '.', '_' and '-', got '{folder.name}'; rename it."
        )
    return name


def _unreadable(folder: Path, error: OSError) -> BundleError:
    return BundleError(f"The folder '{folder}' cannot be read: {error.strerror or error}; fix its rights.")
