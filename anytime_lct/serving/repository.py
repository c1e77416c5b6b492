"""The bundles in service: one, or a folder of them; read again without dropping a request.

FOLDER/digits/manifest.json          model "digits", version "1"
FOLDER/digits.bundle/manifest.json   model "digits" too
FOLDER/digits/2/manifest.json        model "digits", version "2"; without a version the highest answers

A bundle that cannot be served leaves the others in service, and, where an earlier one of its name is, that one too.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from anytime_lct.errors import BundleError, LCTError
from anytime_lct.exits.bundle import MANIFEST, Bundle, Manifest
from anytime_lct.exits.profile import Profile
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.serving.request import Overloaded, Refusal, show
from anytime_lct.serving.scan import Key, Problems, scan


class ServedModel(Protocol):
    """What a repository needs of the bundles that an engine serves."""

    session: AnytimeSession
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


@dataclass(frozen=True)
class Report:
    """What a process finds on the disk: the checksum of every bundle's manifest, and why others cannot be served."""

    sums: dict[Key, str]
    problems: Problems


@dataclass(frozen=True)
class Change(Generic[BundleT]):
    """What has changed on the disk, for all models or those of one `name`: bundles that are open and not in service."""

    name: str | None
    models: dict[Key, Model[BundleT]]
    report: Report


@dataclass(frozen=True)
class ModelState:
    """A model of the index; `reason` is why it, or what replaces it, is not in service."""

    name: str
    version: str
    is_ready: bool
    reason: str


class Repository(Generic[BundleT]):
    """The models by name and version; `prepare` may run in a thread, all else in the event loop alone.

    `serve` turns a session, on a `provider` as AnytimeSession takes it, into the bundle that the engine serves.
    `unloaded` are models that stay out of service until they are loaded, as `unload` returns them.

    >>> repository = Repository(Path("bundles"), ServedBundle)  # doctest: +SKIP
    >>> repository.start(repository.prepare())                  # doctest: +SKIP
    >>> repository.find("digits").version                       # doctest: +SKIP
    '1'
    """

    def __init__(
        self,
        path: Path,
        serve: Callable[[AnytimeSession], BundleT],
        unloaded: Problems | None = None,
        provider: str | Sequence[str] = "cpu",
    ) -> None:
        self.path, self._provider = path, provider
        self.is_open = False
        self._serve = serve
        self._models: dict[Key, Model[BundleT]] = {}
        self._highest: dict[str, str] = {}
        self._problems = dict(unloaded or {})
        self._unloaded = {name for name, _ in self._problems}

    @property
    def sums(self) -> dict[Key, str]:
        """The checksum of the manifest of every model in service."""
        return {key: _sum(model.content) for key, model in self._models.items()}

    def names(self) -> list[str]:
        """Return the names of the models in service."""
        return sorted(self._highest)

    def versions(self, name: str) -> list[str]:
        """Return a model's versions, rising; raises Refusal for an unknown model, and why one is not in service."""
        versions = [version for key, version in self._models if key == name]
        if not versions:
            self._refuse([key for key in self._problems if key[0] == name])
            raise Refusal(
                f"Expected a model of {', '.join(self.names())}, got {show(name)}; choose one of them.", "unknown"
            )
        return sorted(versions, key=int)

    def find(self, name: str, version: str | None = None) -> Model[BundleT]:
        """Return a model of this version, by default the highest; raises Refusal, and why one is not in service."""
        model = self._models.get((name, version or self._highest.get(name, "")))
        if model is None:
            versions = ", ".join(self.versions(name))
            self._refuse([key for key in self._problems if key == (name, version)])
            raise Refusal(
                f"Expected a version of {versions} of '{name}', got {show(version)}; choose one of them.", "unknown"
            )
        return model

    def check_open(self) -> None:
        """Raise Overloaded before the bundles have been read for the first time."""
        if not self.is_open:
            raise Overloaded("The server is still reading its bundles; try again later.", 1.0)

    def index(self) -> list[ModelState]:
        """Return all models, in service or not."""
        keys = sorted(self._models.keys() | self._problems.keys(), key=lambda key: (key[0], int(key[1])))
        return [ModelState(*key, key in self._models, str(self._problems.get(key, ""))) for key in keys]

    def prepare(self, name: str | None = None) -> Change[BundleT]:
        """Read the folder, or one model of it, and open and check what has changed; what is in service stays.

        Raises BundleError for a folder that cannot be read, and Refusal for an unknown name.
        """
        paths, problems = scan(self.path)
        paths = {key: path for key, path in paths.items() if self._is_meant(key[0], name)}
        problems = {key: error for key, error in problems.items() if self._is_meant(key[0], name)}
        if (
            name is not None
            and not paths
            and not problems
            and not any(key[0] == name for key in self._models | self._problems)
        ):
            raise Refusal(
                f"Expected the name of a bundle in '{self.path}', got {show(name)}; copy it there.", "unknown"
            )
        models: dict[Key, Model[BundleT]] = {}
        sums: dict[Key, str] = {}
        for key, path in paths.items():
            try:
                content = _manifest(path)
                model = self._models.get(key)
                if model is None or model.path != path or model.content != content:
                    models[key] = self._open(key, path, content)
                sums[key] = _sum(content)
            except LCTError as error:
                problems[key] = error
        return Change(name, models, Report(sums, problems))

    def start(self, change: Change[BundleT]) -> None:
        """Put the bundles into service that can be served; raises the first problem where none can."""
        if not change.report.sums:
            refuse(change.report.problems)
        self.commit(change, change.report.sums, change.report.problems)

    def commit(self, change: Change[BundleT], accepted: Iterable[Key], problems: Problems) -> None:
        """Put the accepted bundles into service; those with problems stay as they are, and all others go."""
        accepted = set(accepted)
        own = {key for key in self._models | self._problems if self._is_meant(key[0], change.name)}
        stay = {key: model for key, model in self._models.items() if key not in own or key in accepted | set(problems)}
        self._models = stay | {key: model for key, model in change.models.items() if key in accepted}
        self._problems = {key: error for key, error in self._problems.items() if key not in own} | problems
        self._unloaded.discard(change.name or "")
        self._highest = highest(self._models)
        self.is_open = True

    def note(self, problems: Problems) -> None:
        """Record why models cannot be loaded, for the index; what is in service stays."""
        self._problems = self._problems | problems

    def unload(self, name: str) -> Problems:
        """Take a model out of service until it is loaded by its name; return its versions, with why they are out.

        Raises Refusal for an unknown name.
        """
        error = Refusal(f"The model '{name}' is unloaded; load it first.", "unknown")
        unloaded: Problems = {(name, version): error for version in self.versions(name)}
        self._models = {key: model for key, model in self._models.items() if key[0] != name}
        self._problems |= unloaded
        self._unloaded.add(name)
        self._highest = highest(self._models)
        return unloaded

    def _is_meant(self, own: str, name: str | None) -> bool:
        """Whether reading the model `name`, or all that are not unloaded, reads this one."""
        return own == name or (name is None and own not in self._unloaded)

    def _open(self, key: Key, path: Path, content: bytes) -> Model[BundleT]:
        session = AnytimeSession(Bundle.open(path), provider=self._provider)
        session.warm()
        return Model(*key, path, content, self._serve(session))

    def _refuse(self, keys: list[Key]) -> None:
        """Raise why the first of these models is not in service, if there is one, or that the server starts."""
        self.check_open()
        for key in keys:
            raise copy.copy(self._problems[key])  # a new one: an error collects the places where it is raised


def refuse(problems: Problems) -> None:
    """Raise the first problem, if there is one."""
    for problem in problems.values():
        raise problem


def highest(keys: Iterable[Key]) -> dict[str, str]:
    """Return the highest version of each name.

    >>> highest([("digits", "2"), ("digits", "10")])
    {'digits': '10'}
    """
    return {name: version for name, version in sorted(keys, key=lambda key: int(key[1]))}


def _sum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _manifest(path: Path) -> bytes:
    try:
        return (path / MANIFEST).read_bytes()
    except OSError as error:
        raise BundleError(
            f"The manifest of the bundle '{path}' cannot be read: {error.strerror or error}; export it again."
        ) from None
