"""The bundles in service: one, or a folder of them; reloaded without dropping a request.

FOLDER/digits/manifest.json          model "digits", version "1"
FOLDER/digits.bundle/manifest.json   model "digits" too
FOLDER/digits/2/manifest.json        model "digits", version "2"; without a version the highest answers
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from anytime_lct.errors import BundleError
from anytime_lct.exits.bundle import MANIFEST, Bundle, Manifest, is_bundle
from anytime_lct.exits.profile import Profile
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.serving.request import Refusal, show

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
Key = tuple[str, str]  # name and version


class ServedModel(Protocol):
    """What a repository needs of the bundles that an engine serves."""

    manifest: Manifest
    profile: Profile


BundleT = TypeVar("BundleT", bound=ServedModel)


@dataclass(frozen=True, eq=False)
class Model(Generic[BundleT]):
    """A bundle in service; `content` is its manifest, byte for byte. A request keeps the one that it started with."""

    name: str
    version: str
    path: Path
    content: bytes
    bundle: BundleT


class Repository(Generic[BundleT]):
    """The models by name and version, opened and checked; used from the event loop alone.

    `serve` turns a session into the bundle that the engine serves. Raises BundleError.

    >>> repository = Repository(Path("bundles"), ServedBundle)  # doctest: +SKIP
    >>> repository.find("digits").version                 # doctest: +SKIP
    '1'
    """

    def __init__(self, path: Path, serve: Callable[[AnytimeSession], BundleT]) -> None:
        self.path = path
        self._serve = serve
        self._lock = asyncio.Lock()
        self._models = self._open(scan(path))
        self._highest = highest(self._models)

    def names(self) -> list[str]:
        """Return the names of the models in service."""
        return sorted(self._highest)

    def versions(self, name: str) -> list[str]:
        """Return a model's versions, rising; raises Refusal for an unknown model."""
        versions = [version for key, version in self._models if key == name]
        if not versions:
            raise Refusal(
                f"Expected a model of {', '.join(self.names())}, got {show(name)}; choose one of them.", "unknown"
            )
        return sorted(versions, key=int)

    def find(self, name: str, version: str | None = None) -> Model[BundleT]:
        """Return a model of this version, by default the highest; raises Refusal."""
        model = self._models.get((name, version or self._highest.get(name, "")))
        if model is None:
            versions = ", ".join(self.versions(name))
            raise Refusal(
                f"Expected a version of {versions} of '{name}', got {show(version)}; choose one of them.", "unknown"
            )
        return model

    async def reload(self, name: str | None = None) -> list[str]:
        """Read the folder again, or one model of it; returns the names that were changed, added or removed.

        A bundle is opened and checked before it replaces the one in service. Raises BundleError, and Refusal for an
        unknown name; the bundles in service then stay.
        """
        async with self._lock:
            paths = {key: path for key, path in scan(self.path).items() if name in (None, key[0])}
            removed = {key for key in self._models if name in (None, key[0]) and key not in paths}
            if not paths and not removed:
                raise Refusal(
                    f"Expected the name of a bundle in '{self.path}', got {show(name)}; copy it there.", "unknown"
                )
            changed = {key: path for key, path in paths.items() if self._differs(key, path)}
            models = await asyncio.to_thread(self._open, changed)
            self._models = {key: model for key, model in self._models.items() if key not in removed} | models
            self._highest = highest(self._models)
            return sorted({name for name, _ in removed | models.keys()})

    def _differs(self, key: Key, path: Path) -> bool:
        model = self._models.get(key)
        return model is None or model.path != path or model.content != _manifest(path)

    def _open(self, paths: dict[Key, Path]) -> dict[Key, Model[BundleT]]:
        models: dict[Key, Model[BundleT]] = {}
        for key, path in paths.items():
            content, session = _manifest(path), AnytimeSession(Bundle.open(path))
            session.warm()
            models[key] = Model(*key, path, content, self._serve(session))
        return models


def highest(keys: Iterable[Key]) -> dict[str, str]:
    """Return the highest version of each name.

    >>> highest([("digits", "2"), ("digits", "10")])
    {'digits': '10'}
    """
    return {name: version for name, version in sorted(keys, key=lambda key: int(key[1]))}


def scan(path: Path) -> dict[Key, Path]:
    """Find the bundles, by name and version: the folder itself, or those in it; raises BundleError.

    >>> scan(Path("bundles"))  # doctest: +SKIP
    {('digits', '1'): PosixPath('bundles/digits')}
    """
    if is_bundle(path):
        return {(_name(path.resolve()), "1"): path}
    paths: dict[Key, Path] = {}
    for folder in _folders(path):
        versions = {"1": folder} if is_bundle(folder) else _versions(folder)
        for version, bundle in versions.items():
            key = (_name(folder), version)
            if key in paths:
                raise BundleError(
                    f"Expected one bundle named '{key[0]}', got '{paths[key]}' and '{bundle}'; rename one."
                )
            paths[key] = bundle
    if not paths:
        raise BundleError(
            f"Expected a bundle or a folder of bundles, got '{path}', which has none; write one with: "
            "anytime-lct export RUN."
        )
    return paths


def _folders(path: Path) -> list[Path]:
    if not path.is_dir():
        return []
    try:  # names that start with a dot are of bundles that are being written
        return sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
    except OSError as error:
        raise BundleError(f"The folder '{path}' cannot be read: {error.strerror or error}; fix its rights.") from None


def _versions(folder: Path) -> dict[str, Path]:
    numbered = (inner for inner in folder.iterdir() if re.fullmatch(r"[1-9][0-9]{0,8}", inner.name))
    return {inner.name: inner for inner in numbered if is_bundle(inner)}


def _name(folder: Path) -> str:
    name = folder.name.removesuffix(".bundle")
    if not NAME.fullmatch(name):
        raise BundleError(
            f"Expected a bundle's folder named in letters, digits, '.', '_' and '-', got '{folder.name}'; rename it."
        )
    return name


def _manifest(path: Path) -> bytes:
    try:
        return (path / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(
            f"The manifest of the bundle '{path}' cannot be read: {error.strerror or error}; export it again."
        ) from None
