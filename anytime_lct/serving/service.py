"""The service behind every protocol: a model, an input and an Ask come in; a Reply or an error goes out.

protocol                            service
a request arrives    ->  find       its model
                     ->  exchange   holds memory, and counts how the request ends
it is read           ->  answer     admitted, scheduled, computed; cancelled when its client is gone
the reply is written ->  Exchange.count_reply
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Protocol

from numpy.typing import NDArray

from anytime_lct.errors import LCTError
from anytime_lct.exits.budget import Ask
from anytime_lct.exits.bundle import Manifest
from anytime_lct.serving.crew import Alone, Crew
from anytime_lct.serving.limits import Allowance, Limits
from anytime_lct.serving.metrics import Metrics
from anytime_lct.serving.repository import Model, Repository
from anytime_lct.serving.request import ClientGone, Reply, kind_of

DRAIN_SECONDS = 30.0
OUTCOME = {"overloaded": "shed", "failed": "failed"}  # of errors of these kinds; any other is "refused"


class EngineInterface(Protocol):
    """What the service needs of an engine."""

    def submit(self, bundle: Any, x: NDArray[Any], ask: Ask, arrived: float) -> Future[Reply]:
        """Admit a checked batch that arrived at `arrived`, of time.monotonic(); raises Overloaded."""
        ...

    def answer_here(self, bundle: Any, x: NDArray[Any], ask: Ask, arrived: float) -> Reply | None:
        """Answer a request that takes less time than to submit it, or return None."""
        ...

    def record_sent(self, reply: Reply) -> None:
        """Record that a reply has just been written for its client."""
        ...

    def queue_length(self) -> int:
        """Return the number of requests that are admitted and not started."""
        ...

    def hanging(self) -> int:
        """Return the number of requests whose computation hangs."""
        ...

    def drain(self, seconds: float) -> bool:
        """Admit no more requests and wait for the admitted ones."""
        ...

    def close(self) -> None:
        """End the threads."""
        ...


class Exchange:
    """A request while it is read, answered and written: its model, the memory that it uses, and its counters.

    As a context, it frees the memory and counts how the request ends; a client that is gone is no error.
    """

    def __init__(self, service: Service, model: Model[Any]) -> None:
        self.model = model
        self.holding = service.allowance.hold()
        self._service = service
        self._counters = service.metrics.counters(model.name, model.version, model.bundle.manifest.served)

    def __enter__(self) -> Exchange:
        self._service.in_flight += 1
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self._service.in_flight -= 1
        self.holding.__exit__()
        if isinstance(error, ClientGone):
            self._counters.outcomes["gone"] += 1
            return True
        if isinstance(error, LCTError):
            self._counters.outcomes[OUTCOME.get(kind_of(error), "refused")] += 1
        elif isinstance(error, Exception):
            self._counters.outcomes["failed"] += 1
        return False

    def take_buffers(self, x: NDArray[Any]) -> None:
        """Take the memory of the hidden tensors and logits of a batch, which it holds while it waits between groups.

        Raises Overloaded.
        """
        logits = 4 * num_logits(x, self.model.bundle.manifest)
        self.holding.take(self.model.bundle.session.buffer_bytes(x) + 2 * logits)  # the latest, and those if late

    def count_reply(self, reply: Reply, seconds: float, timeout: float | None) -> None:
        """Count a reply that was written `seconds` after its request arrived."""
        self._counters.count_reply(reply, seconds, timeout)


class Service:
    """Answers for every protocol; used from the event loop alone.

    `default` fills in what a request leaves out. `crew` are the processes that serve together, by default this one.
    While `draining`, no new requests may be accepted.
    """

    def __init__(
        self,
        repository: Repository[Any],
        engine: EngineInterface,
        metrics: Metrics,
        limits: Limits,
        default: Ask,
        crew: Crew | None = None,
    ) -> None:
        self.repository, self.engine, self.metrics = repository, engine, metrics
        self.crew = crew or Alone(repository, metrics)
        self.limits, self.default = limits, default
        self.allowance = Allowance(limits.in_flight)
        self.draining = False
        self.in_flight = 0  # requests
        metrics.queue.set_function(engine.queue_length)
        metrics.hanging.set_function(engine.hanging)
        metrics.in_flight.set_function(lambda: self.in_flight)
        metrics.memory.set_function(lambda: self.allowance.used)

    async def close(self) -> None:
        """Accept no more requests, wait for those that are admitted, and end the engine's threads."""
        self.draining = True
        await asyncio.to_thread(self.engine.drain, DRAIN_SECONDS)
        self.engine.close()

    def find(self, name: str, version: str | None = None) -> Model[Any]:
        """Return a model of this version, by default the highest; raises Refusal."""
        return self.repository.find(name, version)

    def exchange(self, model: Model[Any]) -> Exchange:
        """Return the exchange of a request for this model, to be used as a context."""
        return Exchange(self, model)

    async def answer(
        self, model: Model[Any], x: NDArray[Any], ask: Ask, arrived: float, gone: Callable[[], Awaitable[object]]
    ) -> Reply:
        """Answer a checked batch that arrived at `arrived` (time.monotonic()); `gone` returns when the client is gone.

        Raises Overloaded, NothingFitsError, BudgetError, BundleError and ClientGone.
        """
        reply = self.engine.answer_here(model.bundle, x, ask, arrived)
        if reply is not None:
            return reply
        future = self.engine.submit(model.bundle, x, ask, arrived)
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
    """Return the number of logits of an answer: one per class, of every sample or of every step of it."""
    return math.prod(x.shape[: 2 if manifest.row.is_text else 1]) * manifest.outputs


async def _cancel_when(gone: Callable[[], Awaitable[object]], future: Future[Reply]) -> None:
    await gone()
    future.cancel()
