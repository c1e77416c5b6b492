"""Links between neighbouring workers: h_i and labels go down, losses come up, one message a minibatch.

    worker 1   | 1 | 2 | 3 | 4 |        A message is an envelope (step, flags, shape, labels: int64, on the CPU) and a
    worker 2       | 1 | 2 | 3 | 4 |    payload (on the device). Sizes are agreed with the first message of a stretch of
                                        minibatches; a smaller one, like the short last minibatch, is padded.

The receive of minibatch k+1 is posted before the work on k starts, into the other of two buffers; a send overlaps the
work after it, and the next send waits for it. Every message carries its step: one out of order stops the run.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from anytime_lct.errors import WorkerLostError
from anytime_lct.training.minibatch import Minibatch

LAST, SAVE, INTERRUPTED = 1, 2, 4  # flags: the stretch ends here; write a checkpoint; a stop was requested
DIMENSIONS = 6
NUMBERS = 9 + 2 * DIMENSIONS  # of an envelope, before the labels
TYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int64)
BUFFERS = 2


@dataclass(frozen=True)
class Message:
    """What a link sends: `rows` of the `joint` rows in the minibatch of all replicas are in this one.

    `labels` are on the CPU, so that sending waits for no device: classes, or float32, such as shares of classes (B, K).
    """

    step: int
    tensor: Tensor
    labels: Tensor | None = None
    flags: int = 0
    rows: int = 0
    joint: int = 0


class Link:
    """One direction between two workers: `peer` is the rank of the other, `group` a process group of these two.

    With `wire` bf16, float32 payloads are sent as bfloat16. A `staged` link sends payloads from the memory of the CPU.
    Raises WorkerLostError where the neighbour is gone or sends another step than expected.
    """

    def __init__(
        self, group: dist.ProcessGroup, peer: int, device: torch.device, wire: str = "exact", staged: bool = False
    ) -> None:
        self._group, self._peer, self._device, self._wire = group, peer, device, wire
        self._sending = torch.device("cpu") if staged else device
        self._capacity: tuple[int, int] | None = None  # int64 numbers of an envelope, elements of a payload
        self._in_flight: deque[tuple[list[dist.Work], Any]] = deque()
        self._buffers: list[tuple[Tensor, Tensor]] = []
        self._type = self._original = torch.float32

    def send(self, message: Message) -> None:
        """Start sending; the message must not change until the next one is sent, or `finish` returns."""
        order = sorted(range(message.tensor.dim()), key=lambda d: -message.tensor.stride(d))
        dense = message.tensor.detach().permute(order)
        flat = dense.contiguous().reshape(-1)  # no copy for any dense layout, channels-last included
        if self._wire == "bf16" and flat.dtype == torch.float32:
            flat = flat.to(torch.bfloat16)
        flat = flat.to(self._sending)
        envelope = _pack(message, order)
        with _naming_peer(self._peer):
            if self._capacity is None:
                self._capacity = (len(envelope), flat.numel())
                sizes = [*self._capacity, TYPES.index(flat.dtype), TYPES.index(message.tensor.dtype)]
                dist.send(torch.tensor(sizes), self._peer, self._group)
            if len(envelope) > self._capacity[0] or flat.numel() > self._capacity[1]:
                raise WorkerLostError(
                    f"Expected messages of at most {self._capacity[1]} elements as agreed with the first one, got "
                    f"{flat.numel()} at step {message.step + 1}; use minibatches of one shape, the largest first."
                )
            parts = [_padded(envelope, self._capacity[0]), _padded(flat, self._capacity[1])]
            while self._in_flight:
                self._wait_for_first()
            works = [dist.isend(part, self._peer, self._group) for part in parts]
            self._in_flight.append(([work for work in works if work is not None], parts))
        if message.flags & LAST:
            self.finish()

    def receive(self, step: int, last: bool = False) -> Message:
        """Wait for the message of `step`; unless it is the `last`, or flagged so, post the next receive."""
        with _naming_peer(self._peer):
            if self._capacity is None:
                sizes = torch.zeros(4, dtype=torch.int64)
                dist.recv(sizes, self._peer, self._group)
                numbers, elements, wire, original = sizes.tolist()
                self._capacity, self._type, self._original = (numbers, elements), TYPES[wire], TYPES[original]
                self._post()
            envelope, payload = self._buffers[0]
            self._wait_for_first()
        message = _unpack(envelope, payload.to(self._device, self._original))
        if message.step != step:
            raise WorkerLostError(
                f"Expected the message of step {step + 1} from rank {self._peer}, got that of step {message.step + 1}; "
                f"start all workers with the same recipe and folder, and continue with --resume."
            )
        self._buffers.append(self._buffers.pop(0))
        if last or message.flags & LAST:
            self._capacity, self._buffers = None, []
        else:
            with _naming_peer(self._peer):
                self._post()
        return message

    def finish(self) -> None:
        """Wait for all messages in flight; the next message starts a new stretch."""
        with _naming_peer(self._peer):
            while self._in_flight:
                self._wait_for_first()
        self._capacity = None

    def _post(self) -> None:
        assert self._capacity is not None
        while len(self._buffers) < BUFFERS:
            numbers, elements = self._capacity
            envelope = torch.zeros(numbers, dtype=torch.int64)
            self._buffers.append((envelope, torch.empty(elements, dtype=self._type, device=self._sending)))
        works = [dist.irecv(part, self._peer, self._group) for part in self._buffers[0]]
        self._in_flight.append(([work for work in works if work is not None], None))

    def _wait_for_first(self) -> None:
        works, _ = self._in_flight.popleft()
        for work in works:
            work.wait()


@dataclass(frozen=True)
class Status:
    """What goes up with the losses: sums of losses times samples and their counts, (2, N), and whether to stop."""

    sums: Tensor
    interrupted: bool = False


NO_STATUS = Status(torch.zeros(2, 0, dtype=torch.float64))


@dataclass
class Edge:
    """Both directions between two neighbours; `status` is the last one received, or the one to send up."""

    down: Link
    up: Link
    status: Status = NO_STATUS

    def send_minibatch(self, batch: Minibatch, h: Tensor) -> None:
        """Send a minibatch down, with `h` as the input of the next worker."""
        flags = LAST * batch.last | SAVE * batch.save
        labels = batch.y if batch.labels is None else batch.labels
        self.down.send(Message(batch.step, h, labels, flags, batch.rows, batch.joint))

    def send_losses(self, batch: Minibatch, losses: Tensor) -> None:
        """Send losses of a minibatch up, and the status with them."""
        payload = torch.cat([losses.double().reshape(-1), self.status.sums.to(losses.device).reshape(-1)])
        self.up.send(Message(batch.step, payload, flags=LAST * batch.last | INTERRUPTED * self.status.interrupted))

    def receive_losses(self, batch: Minibatch, count: int) -> Tensor:
        """Wait for the `count` losses that come up for a minibatch, (count,), float32, and store the status."""
        message = self.up.receive(batch.step, batch.last)
        sums = message.tensor[count:].view(2, -1).clone()
        self.status = Status(sums, bool(message.flags & INTERRUPTED))
        return message.tensor[:count].float()

    def minibatches(self, first: int) -> Iterator[Minibatch]:
        """Yield the minibatches of the previous worker, from step `first` to the end of the stretch."""
        last, step = False, first
        while not last:
            message = self.down.receive(step)
            assert message.labels is not None
            x, labels = message.tensor, message.labels
            y = labels.to(x.device, non_blocking=True)
            last, step, save = bool(message.flags & LAST), step + 1, bool(message.flags & SAVE)
            yield Minibatch(x, y, message.step, last, save, message.rows, message.joint, labels)


def _pack(message: Message, order: Sequence[int]) -> Tensor:
    """Return the envelope of a message whose tensor is sent with its dimensions in `order`."""

    def padded(values: Sequence[int]) -> list[int]:
        return [*values, *[0] * (DIMENSIONS - len(values))]

    labels = message.labels
    shape = (0, 0) if labels is None else (labels.dim(), labels.shape[-1] if labels.dim() > 1 else 1)
    numbers = [message.step, message.flags, message.rows, message.joint, message.tensor.dim(), *shape]
    count, real = (0, False) if labels is None else (labels.numel(), labels.is_floating_point())
    header = torch.tensor([*numbers, count, int(real), *padded(message.tensor.shape), *padded(order)])
    if labels is None:
        return header
    flat = labels.detach().cpu().reshape(-1)
    return torch.cat([header, flat.double().view(torch.int64) if real else flat.to(torch.int64)])


def _unpack(envelope: Tensor, payload: Tensor) -> Message:
    step, flags, rows, joint, dims, label_dims, window, count, real, *sizes = envelope[:NUMBERS].tolist()
    shape, order = sizes[:dims], sizes[DIMENSIONS : DIMENSIONS + dims]
    tensor = payload[: math.prod(shape)].view([shape[d] for d in order])
    tensor = tensor.permute([order.index(d) for d in range(dims)])  # the strides that the sender's tensor has
    labels = envelope[NUMBERS : NUMBERS + count].clone() if label_dims else None
    if labels is not None and real:
        labels = labels.view(torch.float64).float()
    if labels is not None and label_dims > 1:
        labels = labels.view(-1, window)
    return Message(step, tensor, labels, flags, rows, joint)


def _padded(flat: Tensor, size: int) -> Tensor:
    if flat.numel() == size:
        return flat
    full = flat.new_zeros(size)
    full[: flat.numel()] = flat
    return full


@contextmanager
def _naming_peer(peer: int) -> Iterator[None]:
    """Raise WorkerLostError with the neighbour's rank when a transfer fails."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, WorkerLostError):
            raise
        raise WorkerLostError(peer=peer) from error
