"""Who takes part in a run: W workers, each with neighbouring layer groups, times R replicas of them all.

    rank = replica x W + worker          replica 0:  0 -> 1 -> 2 -> 3      links between neighbours
                                         replica 1:  4 -> 5 -> 6 -> 7      sums between equals (0, 4), (1, 5) ..

torchrun, or the launcher beside this file, starts the processes and tells each its place by the environment. A run in
one process is a team of one, which needs no process group.
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
from anytime_lct.training.processes.launch import QUIET, describe
from anytime_lct.training.processes.links import Edge, Link
from anytime_lct.training.processes.watch import Watch

TRANSPORT = ("gloo", "Gloo", "NCCL", "Connection", "store")  # named in the RuntimeErrors of a lost connection
PATIENCE = timedelta(hours=1)  # for the slowest legitimate wait, such as another worker loading its data


@dataclass
class Team:
    """This process's place (from 0), its links to the neighbours, and what all processes do together."""

    device: torch.device
    worker: int = 0
    workers: int = 1
    replica: int = 0
    replicas: int = 1
    previous: Edge | None = None
    next: Edge | None = None
    restarted: bool = False  # by the launcher, after a worker was lost
    watch: Watch | None = None
    equals: Any = None  # process group of this worker's replicas
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
        """Whether this process writes what a run has once: metrics, progress, the name of a checkpoint."""
        return self.worker == 0 and self.replica == 0

    def sum(self, values: Tensor) -> Tensor:
        """Add up over all processes; each entry of a value that one process alone owns comes out exactly."""
        if self.size == 1:
            return values
        total = values.detach().cpu().clone()
        dist.all_reduce(total)
        return total

    def mean(self, values: list[int]) -> list[int]:
        """Return the rounded mean of integers over all processes, the same in each."""
        total = self.sum(torch.tensor(values, dtype=torch.int64))
        return [round(value / self.size) for value in total.tolist()]

    def agree(self, *wishes: bool) -> tuple[bool, ...]:
        """Among the first workers of all replicas: grant what any of them wishes."""
        if self.replicas == 1:
            return wishes
        asked = torch.tensor([int(wish) for wish in wishes])
        dist.all_reduce(asked, group=self.equals)
        return tuple(bool(count) for count in asked)

    def joined(self, part: Tensor, dim: int) -> Tensor:
        """Put the parts that the replicas of this worker hold together along `dim`; `own` takes them apart."""
        if self.replicas == 1:
            return part
        rows = torch.tensor([part.shape[dim]])
        dist.all_reduce(rows, group=self.equals)
        whole = part.new_zeros([int(rows) if d == dim else size for d, size in enumerate(part.shape)], device="cpu")
        self.own(whole, dim).copy_(part)
        dist.all_reduce(whole, group=self.equals)  # zeros but for one: exact
        return whole

    def own(self, whole: Tensor, dim: int) -> Tensor:
        """Return this replica's part of a minibatch's rows along `dim`, as the data are dealt."""
        return whole.tensor_split(self.replicas, dim)[self.replica]

    def wait_for_all(self) -> None:
        if self.size > 1:
            dist.barrier() if self.device.type == "cpu" else self.sum(torch.zeros(1))

    def share(self, value: Any = None) -> Any:
        """Give every process what the leader knows; `value` is anything that JSON holds."""
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
        """Hold the team for a run; an error of one ends all, each with a sentence naming the one that ended first."""
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
            raise WorkerLostError(self._said(self.watch.blame(error.peer, str(error)))) from None
        except LCTError as error:
            self.watch.blame(rank, f"{describe(rank, self.workers)} ended: {error}")
            raise
        except RuntimeError as error:
            if not _is_transport(error):
                self.watch.blame(rank)
                raise
            raise WorkerLostError(self._said(self.watch.blame(None))) from None
        except BaseException:
            self.watch.blame(rank)
            raise
        self._leave()

    def _said(self, sentence: str) -> str:
        """Leave it to the launcher to say who was lost, where there is one to say it once."""
        return "" if QUIET in os.environ else sentence

    def _leave(self) -> None:
        assert self.watch is not None
        self.watch.stop()
        dist.destroy_process_group()


def alone(device: torch.device) -> Team:
    """Make the team of a run in one process."""
    return Team(device)


def started() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def join(workers: int, replicas: int, device: torch.device, wire: str = "exact") -> Team:
    """Take the place that the environment gives; raises RecipeError where it does not fit, and WorkerLostError."""
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
        sentence = f"A worker ended while the {size} of this run were meeting; start the run again with --resume."
        raise WorkerLostError("" if QUIET in os.environ else sentence) from None


def _join(workers: int, replicas: int, device: torch.device, wire: str) -> Team:
    if device.type == "cuda":
        place_here, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if place_here >= found:
            raise RecipeError(
                f"Expected a GPU for each process on this machine, got {found} for {place_here + 1} and more; start "
                f"fewer, or set train.device = 'cpu'."
            )
        device = torch.device("cuda", place_here)
        torch.cuda.set_device(device)
    place = rendezvous("env://", timeout=PATIENCE)
    store, rank, size = next(place)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = PrefixStore(f"attempt/{attempt}", store)  # addresses of the workers before a restart stay in the store
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    replica, worker = divmod(rank, workers)
    team = Team(device, worker, workers, replica, replicas)
    for r in range(replicas):  # every process makes every group, in this order
        for w in range(workers - 1):
            above, below = r * workers + w, r * workers + w + 1
            down, up = (_pair(above, below, device) for _ in range(2))
            if rank == above:
                team.next = Edge(Link(down, below, device, wire), Link(up, below, device))
            if rank == below:
                team.previous = Edge(Link(down, above, device), Link(up, above, device))
    if replicas > 1:
        for w in range(workers):
            members = [r * workers + w for r in range(replicas)]
            group = dist.new_group(members)
            if w == worker:
                team.equals = group
    again = torch.tensor([int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))])
    team.restarted = bool(team.sum(again) > 0)  # the count may differ between hosts
    team.watch = Watch(
        PrefixStore("watch", store.clone()),
        rank,
        size,
        lambda other: describe(other, workers),
        QUIET in os.environ,
    )
    return team


def _pair(above: int, below: int, device: torch.device) -> Any:
    """Make a process group of two neighbours for one direction: NCCL ignores tags and would mix two up."""
    group: Any = dist.new_group([above, below])
    if device.type == "cuda" and dist.get_rank() in (above, below):  # opens the connection in the order of all
        first = torch.zeros(1, device=device)
        (dist.send if dist.get_rank() == above else dist.recv)(
            first, below if dist.get_rank() == above else above, group
        )
    return group


def _is_transport(error: RuntimeError) -> bool:
    """Tell a lost connection from a mistake of torch's user; gloo raises plain RuntimeError."""
    return isinstance(error, dist.DistError) or any(name in str(error) for name in TRANSPORT)


def owned(bounds: Sequence[int], worker: int) -> range:
    """Layer groups of a worker, from 0."""
    return range(bounds[worker], bounds[worker + 1])
