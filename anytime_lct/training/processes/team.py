"""The processes of a run: W workers, each with neighbouring layer groups, times R replicas of them all.

    rank = replica x W + worker          replica 0:  0 -> 1 -> 2 -> 3      links between neighbours
                                         replica 1:  4 -> 5 -> 6 -> 7      sums over replicas (0, 4), (1, 5) ..

torchrun, or the launcher beside this file, starts the processes and sets each one's rank in its environment. A run in
one process is a team of one, `Team(device)`, which needs no process group.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.rendezvous import rendezvous

from anytime_lct.errors import LCTError, RecipeError, WorkerLostError
from anytime_lct.training.processes.launch import LAUNCHED_VARIABLE, describe
from anytime_lct.training.processes.links import Edge, Link
from anytime_lct.training.processes.watch import Watch

TRANSPORT = ("gloo", "Gloo", "NCCL", "Connection", "store")  # words in the RuntimeErrors of a lost connection
TIMEOUT = timedelta(hours=1)  # above the longest legitimate wait, such as another worker loading its data


@dataclass
class Team:
    """This process's worker and replica (from 0), its links to the neighbours, and collective operations."""

    device: torch.device
    worker: int = 0
    workers: int = 1
    replica: int = 0
    replicas: int = 1
    previous: Edge | None = None
    next: Edge | None = None
    restarted: bool = False  # by the launcher, after a worker was lost
    watch: Watch | None = None
    replica_group: Any = None  # process group of this worker's replicas
    bounds: tuple[int, ...] = field(default=())  # worker w owns layer groups bounds[w]+1 .. bounds[w+1]

    @property
    def size(self) -> int:
        return self.workers * self.replicas

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""
        return self.replica * self.workers + self.worker

    @property
    def leads(self) -> bool:
        """Whether this process writes what a run has once: metrics, progress, the progress file of a checkpoint."""
        return self.worker == 0 and self.replica == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add up over all processes; an entry that is zero in all processes but one is exact."""
        if self.size == 1:
            return values
        total = values.detach().cpu().clone()
        dist.all_reduce(total)
        return total

    def mean(self, values: list[int]) -> list[int]:
        """Return the rounded mean of integers over all processes, the same in each."""
        total = self.sum(torch.tensor(values, dtype=torch.int64))
        return [round(value / self.size) for value in total.tolist()]

    def agree(self, *flags: bool) -> tuple[bool, ...]:
        """Return, among the first workers of all replicas, whether any of them sets each flag."""
        if self.replicas == 1:
            return flags
        counts = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(counts, group=self.replica_group)
        return tuple(bool(count) for count in counts)

    def concatenated(self, part: Tensor, dim: int) -> Tensor:
        """Concatenate the parts of this worker's replicas along `dim`; the inverse of `own_part`."""
        if self.replicas == 1:
            return part
        rows = torch.tensor([part.shape[dim]])
        dist.all_reduce(rows, group=self.replica_group)
        whole = part.new_zeros([int(rows) if d == dim else size for d, size in enumerate(part.shape)], device="cpu")
        self.own_part(whole, dim).copy_(part)
        dist.all_reduce(whole, group=self.replica_group)  # exact: each entry is zero in all replicas but one
        return whole

    def own_part(self, whole: Tensor, dim: int) -> Tensor:
        """Return this replica's part of a minibatch along `dim`, split like the data."""
        return whole.tensor_split(self.replicas, dim)[self.replica]

    def wait_for_all(self) -> None:
        if self.size > 1:
            dist.barrier() if self.device.type == "cpu" else self.sum(torch.zeros(1))

    def broadcast(self, value: Any = None) -> Any:
        """Return the leader's `value` in every process; it is anything that JSON can hold."""
        if self.size == 1:
            return value
        content = json.dumps(value).encode() if self.leads else b""
        length = self.sum(torch.tensor([len(content)]))
        buffer = torch.zeros(int(length), dtype=torch.uint8)
        if self.leads:
            buffer.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(buffer, 0)
        return json.loads(bytes(buffer.tolist()))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run inside as a team: an error of one process ends all, each with a sentence naming the one at fault."""
        if self.size == 1:
            yield
            return
        rank = self.rank
        assert self.watch is not None
        try:
            yield
            self.wait_for_all()
        except KeyboardInterrupt:
            self._leave()
            raise
        except WorkerLostError as error:
            raise WorkerLostError(self._own_report(self.watch.blame(error.peer, str(error)))) from None
        except LCTError as error:
            self.watch.blame(rank, f"{describe(rank, self.workers)} ended: {error}")
            raise
        except RuntimeError as error:
            if not _is_transport(error):
                self.watch.blame(rank)
                raise
            raise WorkerLostError(self._own_report(self.watch.blame(None))) from None
        except BaseException:
            self.watch.blame(rank)
            raise
        self._leave()

    def _own_report(self, sentence: str) -> str:
        """Return the sentence, or nothing where a launcher reports the lost worker, once for all."""
        return "" if LAUNCHED_VARIABLE in os.environ else sentence

    def _leave(self) -> None:
        assert self.watch is not None
        self.watch.stop()
        dist.destroy_process_group()


def in_team() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def join_team(workers: int, replicas: int, device: torch.device, wire: str = "exact") -> Team:
    """Join with the rank of the environment; raises RecipeError where the sizes do not fit, and WorkerLostError.

    On `cuda` each process of a machine has a GPU of its own, and NCCL sends from one to the other. A GPU with a number,
    `cuda:0`, is shared by all: gloo sends by way of the CPU's memory, which is no faster than one process.
    """
    size = int(os.environ["WORLD_SIZE"])
    if size != workers * replicas:
        raise RecipeError(
            f"Expected {workers} workers times {replicas} replicas = {workers * replicas} processes, got {size}; make "
            f"torchrun's --nnodes times --nproc-per-node equal to it."
        )
    try:
        return _join(workers, replicas, device, wire)
    except RuntimeError as error:
        if not _is_transport(error):
            raise
        sentence = f"A worker ended while the {size} of this run were connecting; start the run again with --resume."
        raise WorkerLostError("" if LAUNCHED_VARIABLE in os.environ else sentence) from None


def _join(workers: int, replicas: int, device: torch.device, wire: str) -> Team:
    shared = device.index is not None
    if device.type == "cuda" and not shared:
        local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= num_gpus:
            raise RecipeError(
                f"Expected a GPU for each process on this machine, got {num_gpus} for {local_rank + 1} and more; start "
                f"fewer, or set train.device = 'cpu', or 'cuda:0' to let them share a GPU."
            )
        device = torch.device("cuda", local_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    store = PrefixStore(f"attempt/{attempt}", store)  # addresses of the workers before a restart stay in the store
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" and not shared else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    replica, worker = divmod(rank, workers)
    team = Team(device, worker, workers, replica, replicas)
    for r in range(replicas):  # every process makes every group, in this order
        for w in range(workers - 1):
            above, below = r * workers + w, r * workers + w + 1
            down, up = (_pair(above, below, device, shared) for _ in range(2))
            if rank == above:
                team.next = Edge(Link(down, below, device, wire, shared), Link(up, below, device, staged=shared))
            if rank == below:
                team.previous = Edge(Link(down, above, device, staged=shared), Link(up, above, device, staged=shared))
    if replicas > 1:
        for w in range(workers):
            group = dist.new_group([r * workers + w for r in range(replicas)])
            if w == worker:
                team.replica_group = group
    team.restarted = bool(team.sum(torch.tensor([attempt])) > 0)  # the count may differ between hosts
    team.watch = Watch(
        PrefixStore("watch", store.clone()),
        rank,
        size,
        lambda other: describe(other, workers),
        LAUNCHED_VARIABLE in os.environ,
    )
    return team


def _pair(above: int, below: int, device: torch.device, shared: bool) -> Any:
    """Make a process group of two neighbours for one direction: NCCL ignores tags and would confuse two."""
    group: Any = dist.new_group([above, below])
    if device.type == "cuda" and not shared and dist.get_rank() in (above, below):  # opens all connections in one order
        first = torch.zeros(1, device=device)
        (dist.send if dist.get_rank() == above else dist.recv)(
            first, below if dist.get_rank() == above else above, group
        )
    return group


def _is_transport(error: RuntimeError) -> bool:
    """Whether an error comes from a lost connection rather than a wrong call; gloo raises plain RuntimeError."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in TRANSPORT)


def owned(bounds: Sequence[int], worker: int) -> range:
    """Return the layer groups of a worker, from 0."""
    return range(bounds[worker], bounds[worker + 1])
