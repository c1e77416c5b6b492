"""Whether layer groups train and answer as the uncut network does: both run, on the same numbers, and are compared.

A recording holds operations. What else a forward pass does, or a `train()` that is the network's own, does not
survive a cut at the network's top level: frozen gradients, another precision, layers that are dropped at random,
weights and statistics that are assigned. So each side takes one training step and two more passes, from the same
weights and random states, and everything that comes of them must be equal, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from anytime_lct.cutting.snapshot import Snapshot, seed_all
from anytime_lct.errors import PartitionError

SEED = 0
TOLERANCE, SLACK = 1e-3, 10  # where the network differs from itself: of the largest value, or so many times as much


def expect_equal(model: nn.Module, groups: Sequence[nn.Module], places: Sequence[str], example: Tensor) -> None:
    """Raise PartitionError where the groups do not train and answer as the network, which is unchanged.

    `example` is a batch of inputs (B >= 2): the comparison is on random values for two samples of its shape. Compared
    are outputs, gradients, weights and buffers after a training step, modes, and the outputs of two more passes, in
    training and in evaluation. A group whose weights get no gradient in training is refused too.
    """
    name, example, snapshot = type(model).__name__, example[:2], Snapshot(model, *groups)
    try:
        expected = _outcome(model, [model], example, snapshot)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise PartitionError(
            f"{name} cannot run a training step on a batch of shape {tuple(example.shape)}: {reason}; let its forward "
            f"pass take one batch and return one tensor in training too."
        ) from error
    try:
        outcome = _outcome(model, groups, example, snapshot)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError, NotImplementedError):
        outcome = {}  # a part cannot read the output of the one before it
    if difference := _difference(expected, outcome, lambda: _outcome(model, [model], example, snapshot)):
        own = f" and {name}.train do" if type(model).train is not nn.Module.train else " does"
        raise PartitionError(
            f"The groups between {', '.join(places)} do not compute what the network does: {difference}; move what "
            f"{name}.forward{own} beyond calling submodules into a submodule, which runs as it is, or train the "
            f"uncut network, by method bp."
        )
    for number, group in enumerate(groups, start=1):
        trained = (n for n, p in model.named_parameters() if any(p is own for own in group.parameters()))
        if all(outcome[_gradient(n)] is None for n in trained):
            raise PartitionError(
                f"Layer group {number} of the places {', '.join(places)} trains no weights, as none of them gets a "
                f"gradient in the network's own training step; remove a place."
            )


def _outcome(model: nn.Module, parts: Sequence[nn.Module], example: Tensor, snapshot: Snapshot) -> dict[str, Any]:
    """Run the parts of the network one after another; return what comes of it, by its name in messages.

    Of weights and buffers that do not change, the value is None. The network is put back to the snapshot.
    """
    draw = torch.Generator().manual_seed(SEED)

    def random_like(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=draw, dtype=torch.float32).to(tensor)

    def run(x: Tensor, training: bool) -> Any:
        for part in parts:
            x = part.train(training)(x)
        return x

    x = random_like(example) if example.is_floating_point() else example
    owned = {id(module) for part in parts for module in part.modules()}
    with snapshot, torch.inference_mode(False), torch.enable_grad():
        seed_all(SEED)
        model.zero_grad()
        Z = run(x, training=True)
        if not isinstance(Z, Tensor):
            raise TypeError(f"it returns a {type(Z).__name__}")
        outcome: dict[str, Any] = {f"the mode of '{n}'": m.training for n, m in model.named_modules() if id(m) in owned}
        outcome["the output in training"] = Z.detach()
        values = {n: v for n, v in model.state_dict(keep_vars=True).items() if isinstance(v, Tensor)}
        values |= dict(model.named_buffers())
        for n, v in values.items():
            unchanged = id(v) in snapshot.values and torch.equal(v, snapshot.values[id(v)])
            outcome[_after(n)] = None if unchanged else v.detach().clone()
        if Z.requires_grad:
            Z.backward(random_like(Z))
        outcome |= {_gradient(n): p.grad for n, p in model.named_parameters()}
        # Checkpointing runs its parts again in the backward pass, and moves statistics twice.
        for n, v in values.items():
            if outcome[_after(n)] is not None:
                v.data.copy_(outcome[_after(n)])
        with torch.no_grad():
            outcome["the output after a training step"] = run(x, training=True)
            outcome["the output in evaluation"] = run(x, training=False)
    return outcome


def _after(name: str) -> str:
    return f"'{name}' after a forward pass in training"


def _gradient(name: str) -> str:
    return f"the gradient of '{name}'"


def _difference(expected: dict[str, Any], outcome: dict[str, Any], rerun: Callable[[], dict[str, Any]]) -> str:
    """Return what differs, in words, or nothing; `rerun` runs the network once more, to see its own noise."""
    different = [name for name, value in expected.items() if name in outcome and not _equal(value, outcome[name])]
    if not outcome:
        return "they cannot read each other's outputs"
    if not different:
        return ""
    again = rerun()
    for name in different:
        if _equal(expected[name], again[name]) or not _is_close(expected[name], outcome[name], again[name]):
            return f"{name} differs"
    return ""


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and a == b
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a, b) or torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def _is_close(value: Any, other: Any, again: Any) -> bool:
    """Return whether `other` is about as near to the value as another run of the same network is."""
    if not all(isinstance(x, Tensor) and x.shape == again.shape for x in (value, other, again)):
        return False
    value, other, again = value.double(), other.double(), again.double()
    noise = torch.max(TOLERANCE * value.abs().max(), SLACK * (value - again).abs().max())
    return bool((value - other).abs().max() <= noise)
