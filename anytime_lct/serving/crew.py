"""The processes that serve together: what one loads or unloads all do, or none, and their metrics are one set.

prepare   every process reads the folder and opens what has changed there
agree     the bundles that all have opened, with the same content
commit    every process puts those into service at once; for the others it keeps what it has
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol

from anytime_lct.errors import BundleError
from anytime_lct.serving.logs import LOG
from anytime_lct.serving.metrics import Metrics, Values
from anytime_lct.serving.repository import Report, Repository, refuse
from anytime_lct.serving.scan import Key, Problems


class Crew(Protocol):
    """All processes that serve together, as one of them knows them."""

    async def join(self) -> None:
        """Return when this process, whose bundles are open, may answer."""
        ...

    async def load(self, name: str | None = None) -> None:
        """Read the folder again, or one model of it, in all processes.

        Raises BundleError, and Refusal for an unknown name, where one model cannot be loaded in one of them; then none
        has changed. Without a name, bundles that cannot be loaded are logged.
        """
        ...

    async def unload(self, name: str) -> None:
        """Take a model out of service in all processes until it is loaded by its name; raises Refusal."""
        ...

    async def values(self) -> Values:
        """Return the metrics of all processes together."""
        ...


class Alone:
    """A crew of one process."""

    def __init__(self, repository: Repository[Any], metrics: Metrics) -> None:
        self._repository, self._metrics = repository, metrics
        self._lock = asyncio.Lock()

    async def join(self) -> None:
        """Return at once: there is nobody to wait for."""

    async def load(self, name: str | None = None) -> None:
        """Read the folder again, or one model of it; raises BundleError and Refusal."""
        with self._metrics.count_reload():
            async with self._lock:
                change = await asyncio.to_thread(self._repository.prepare, name)
                accepted, problems = agree([change.report])
                if name is not None and problems:
                    self._repository.note(problems)
                    refuse(problems)
                self._repository.commit(change, accepted, problems)
            log_change(accepted, problems)

    async def unload(self, name: str) -> None:
        """Take a model out of service; raises Refusal."""
        async with self._lock:
            self._repository.unload(name)

    async def values(self) -> Values:
        """Return the metrics of this process."""
        return self._metrics.values()


def agree(reports: Iterable[Report]) -> tuple[dict[Key, str], Problems]:
    """Return the bundles that all processes have opened with the same content, and the problems of the others.

    >>> same, other = Report({("a", "1"): "5e"}, {}), Report({("a", "1"): "77"}, {})
    >>> agree([same, same])
    ({('a', '1'): '5e'}, {})
    >>> list(agree([same, other])[1])
    [('a', '1')]
    """
    reports = list(reports)
    accepted: dict[Key, str] = {}
    problems: Problems = {}
    for report in reports:
        problems |= report.problems
    for key in sorted({key for report in reports for key in report.sums} - problems.keys()):
        sums = {report.sums.get(key, "") for report in reports}
        if len(sums) == 1:
            accepted[key] = sums.pop()
        else:
            problems[key] = BundleError(f"The bundle '{key[0]}' changed while it was read; load it again.")
    return accepted, problems


def log_change(accepted: Iterable[Key], problems: Problems) -> None:
    """Log what is served after the folder has been read again."""
    for error in problems.values():
        LOG.error("%s", error)
    LOG.info("Serving %s.", ", ".join(f"{name} (version {version})" for name, version in accepted) or "no other model")
