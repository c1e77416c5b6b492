"""The service behind every protocol: a model, an input and an Ask come in, a Reply goes out, or an error of some kind.

protocol                            service
a request arrives    ->  find       which model
                     ->  take       memory is held, and how the request ends is counted
it is read           ->  answer     admitted, scheduled, computed; cancelled when its client is gone
the reply is written ->  Request.written
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray

from anytime_lct.errors import LCTError
from anytime_lct.exits.budget import Ask
from anytime_lct.exits.bundle import Manifest
from anytime_lct.serving.limits import Allowance, Holding, Limits
from anytime_lct.serving.metrics import Counted, Metrics
from anytime_lct.serving.repository import Model, Repository
from anytime_lct.serving.request import ClientGone, Reply, kind_of

DRAIN_SECONDS = 30.0
OUTCOME = {"overloaded": "shed", "failed": "failed"}  # how an error of these kinds is counted; any other is "refused"


class Answering(Protocol):
    """What the service needs of an engine."""

    def submit(self, served: Any, x: NDArray[Any], ask: Ask, arrived: float) -> Future[Reply]:
        """Admit a checked batch that came at `arrived`, of time.monotonic(); raises Overloaded."""
        ...

    def sent(self, reply: Reply) -> None:
        """Be told that a reply has just been written for its client."""
        ...

    def queue_length(self) -> int:
        """Count what is admitted and not begun."""
        ...

    def drain(self, seconds: float) -> bool:
        """Admit no more and wait for what is admitted."""
        ...

    def close(self) -> None:
        """End the threads."""
        ...


@dataclass(eq=False)
class Request:
    """A request while it is read, answered and written: its model, the memory that it holds, and what it asked."""

    model: Model[Any]
    holding: Holding
    counted: Counted

    def written(self, reply: Reply, seconds: float, timeout: float | None) -> None:
        """Count a reply that went out so many seconds after its request came."""
        self.counted.answered(reply, seconds, timeout)


class Service:
    """Answers for every protocol; used from the event loop alone.

    `default` is what a request asks where it says nothing. While `draining`, no new requests are to be taken.
    """

    def __init__(
        self, repository: Repository[Any], engine: Answering, metrics: Metrics, limits: Limits, default: Ask
    ) -> None:
        self.repository, self.engine, self.metrics = repository, engine, metrics
        self.limits, self.default = limits, default
        self.allowance = Allowance(limits.in_flight)
        self.draining = False

    async def close(self) -> None:
        """Take no more requests, wait for those that are admitted, and end the engine's threads."""
        self.draining = True
        await asyncio.to_thread(self.engine.drain, DRAIN_SECONDS)
        self.engine.close()

    def find(self, name: str, version: str | None = None) -> Model[Any]:
        """Return a model, of the highest version unless told otherwise; raises Refusal."""
        return self.repository.find(name, version)

    @contextmanager
    def take(self, model: Model[Any]) -> Iterator[Request]:
        """Hold what a request needs while it is in hand, and count how it ends; a client that is gone is no error."""
        counted = self.metrics.of(model.name, model.version, model.served.manifest.served)
        self.metrics.in_flight.inc()
        try:
            with self.allowance.hold() as holding:
                yield Request(model, holding, counted)
        except ClientGone:
            counted.outcomes["gone"].inc()
        except LCTError as error:
            counted.outcomes[OUTCOME.get(kind_of(error), "refused")].inc()
            raise
        except Exception:
            counted.outcomes["failed"].inc()
            raise
        finally:
            self.metrics.in_flight.dec()
            self.metrics.queue.set(self.engine.queue_length())

    async def answer(
        self, model: Model[Any], x: NDArray[Any], ask: Ask, arrived: float, gone: Callable[[], Awaitable[object]]
    ) -> Reply:
        """Answer a checked batch that came at `arrived`, of time.monotonic(); `gone` ends when its client does.

        Raises Overloaded, NothingFitsError, BudgetError, BundleError and ClientGone.
        """
        future = self.engine.submit(model.served, x, ask, arrived)
        self.metrics.queue.set(self.engine.queue_length())
        watch = asyncio.create_task(_cancel_when(gone, future))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if watch.done() and future.cancelled():
                raise ClientGone from None
            raise
        finally:
            watch.cancel()


def num_logits(x: NDArray[Any], manifest: Manifest) -> int:
    """Count the logits of an answer: a class each of every sample, or of every step of it."""
    return math.prod(x.shape[: 1 if manifest.task == "classification" else 2]) * manifest.outputs


async def _cancel_when(gone: Callable[[], Awaitable[object]], future: Future[Reply]) -> None:
    await gone()
    future.cancel()
