"""Snapshots: whatever running a network changes is put back, down to its attributes and the random states."""

from __future__ import annotations

import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


class Snapshot:
    """A network as it is now; `with snapshot:` puts back, behind each such block, all that running the network changes.

    That is: modes, attributes (also lists and dicts that are attributes), gradients and whether these are computed, the
    random states of torch, Python and numpy, and with `values` the values of weights, buffers and other tensors, of
    which `values` holds copies, by id.

    >>> with Snapshot(norm):
    ...     norm.train()(x)  # its statistics are the old ones afterwards
    """

    def __init__(self, *modules: nn.Module, values: bool = True) -> None:
        owned = {id(module): module for root in modules for module in root.modules()}
        self._fields = [(module, dict(vars(module))) for module in owned.values()]
        fields = {id(value): value for _, own in self._fields for value in own.values()}
        mutable = [value for value in fields.values() if isinstance(value, dict | set | list | deque)]
        self._contents = [(container, container.copy()) for container in mutable]
        entries = [e for content in mutable for e in (content.values() if isinstance(content, dict) else content)]
        tensors = {id(v): v for v in (*fields.values(), *entries) if isinstance(v, Tensor) and not is_lazy(v)}
        self._tensors = [(t, t.data, t.grad if t.is_leaf else None, t.requires_grad) for t in tensors.values()]
        self.values = {key: tensor.data.clone() for key, tensor in tensors.items()} if values else {}

    def __enter__(self) -> Snapshot:
        self._restore_random_states = save_random_states()
        return self

    def __exit__(self, *_: object) -> None:
        self._restore_random_states()
        for module, own in self._fields:
            vars(module).clear()
            vars(module).update(own)
        for container, content in self._contents:
            container.clear()
            (container.update if isinstance(container, dict | set) else container.extend)(content)
        for tensor, data, gradient, requires_grad in self._tensors:
            value = self.values.get(id(tensor), data)
            if value is not data and not data.is_meta and not torch.equal(data, value):
                data.copy_(value)
            tensor.data = data
            if tensor.is_leaf:
                tensor.requires_grad_(requires_grad).grad = gradient


def random_positions() -> tuple[Any, ...]:
    """Return what changes whenever a number is drawn from the random states of torch, Python or numpy."""
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    numpy = sys.modules.get("numpy.random")
    position = () if numpy is None else (numpy.get_state()[1].tobytes(), *numpy.get_state()[2:])
    of_torch = tuple(state.numpy().tobytes() for state in (torch.get_rng_state(), *devices))
    return (of_torch, random.getstate(), position)


def seed_all(seed: int) -> None:
    """Seed the random states of torch, Python and numpy; a CUDA graph that is being recorded draws from none."""
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return
    torch.manual_seed(seed)
    random.seed(seed)
    if numpy := sys.modules.get("numpy.random"):
        numpy.seed([seed % 2**32, seed >> 32])


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from these random states by `seed` within this block; the earlier states are restored afterwards."""
    restore = save_random_states()
    seed_all(seed)
    try:
        yield
    finally:
        restore()


def save_random_states() -> Callable[[], None]:
    """Return a function that puts the random states of torch, Python and numpy back as they are now."""
    of_torch, of_python = torch.get_rng_state(), random.getstate()
    of_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    numpy = sys.modules.get("numpy.random")
    of_numpy = numpy and numpy.get_state()

    def restore() -> None:
        torch.set_rng_state(of_torch)
        random.setstate(of_python)
        torch.cuda.set_rng_state_all(of_devices)
        if numpy:
            numpy.set_state(of_numpy)

    return restore
