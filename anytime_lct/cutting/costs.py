"""What a layer group costs in training: layers, multiply-adds, or bytes of memory, its critic included.

A table holds at [a][b] the cost of segments a..b-1 as one group. Training costs are counted on meta tensors, which have
shapes and no values: multiply-adds, forward and backward, by torch's own counter, and bytes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anytime_lct.counting import count_in_turn
from anytime_lct.cutting.blocks import is_layer
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import LCTError, PartitionError

# Makes the critic of a cut, or None: from the cut's index (from 0), the tensor that crosses it, and the multiply-adds
# per sample of all groups behind it.
MakeCritic = Callable[[int, Tensor, int], nn.Module | None]
Table = list[list[int]]  # [a][b]: cost of the group of segments a..b-1, for a < b
Saved = dict[int, int]  # bytes of the storages that are saved for the backward pass, by storage id


def of_layers(trace: Trace) -> Table:
    """Return the table of layers with weights on the longest path: 50 for ResNet-50, whose shortcuts run beside it."""
    recording, depth = trace.recording, dict.fromkeys([trace.recording.input], 0)
    for step in recording.steps:
        before = max((depth.get(source, 0) for source in step.all_input_nodes), default=0)
        depth[step] = before + is_layer(step, recording)
    depths = [0, *(depth[trace.crossing[cut.position]] for cut in trace.candidates), depth[recording.result]]
    return [[end - start for end in depths] for start in depths[:-1]]


def of_multiply_adds(parts: Sequence[nn.Module], critic: MakeCritic, example: Tensor) -> Table:
    """Return the table of multiply-adds of a training step on a batch like `example`."""
    with measuring(example, without_values=True):
        amounts, _ = count_in_turn(parts, example)
        return _flops_table(*probe([on_meta(part) for part in parts], meta_like(example), critic, amounts))


def of_bytes(parts: Sequence[nn.Module], critic: MakeCritic, example: Tensor, weight_copies: int = 0) -> Table:
    """Return the table of bytes that are saved for the backward pass of a batch like `example`.

    `weight_copies` counts every weight so many times, for the weight, its gradient and the optimizer's state, where
    groups do not share a device; then the input counts once more, for the next minibatch, and the output twice, for the
    message and its gradient. 0 leaves both out.
    """
    with measuring(example, without_values=True):
        amounts, _ = count_in_turn(parts, example)
        copies, critics, inputs = probe([on_meta(part) for part in parts], meta_like(example), critic, amounts)
        table = _bytes_table(copies, critics, inputs)
    if not weight_copies:
        return table
    weights = [weight_copies * weight_bytes(part) for part in parts]
    messages = [0, *(x.untyped_storage().nbytes() for x in inputs[1:]), 0]
    return [
        [cost + sum(weights[a:b]) + messages[a] + 2 * messages[b] if a < b else 0 for b, cost in enumerate(row)]
        for a, row in enumerate(table)
    ]


def training_cost(module: nn.Module, x: Tensor, *, input_grad: bool = True) -> int:
    """Return the multiply-adds of a forward and backward pass on `x`, counted by torch on meta tensors.

    With `input_grad` False the gradient of the input is left out, as no layer group computes it.

    >>> training_cost(nn.Linear(7, 6), torch.zeros(3, 7))  # 3 x 3 x 7 x 6
    378
    """
    return _count(on_meta(module), meta_like(x), input_grad)


def saved_bytes(module: nn.Module, x: Tensor, *, input_grad: bool = True) -> int:
    """Return the bytes of distinct activations, not weights, that a forward pass saves for backward.

    Counted as torch's own operators save them; fused kernels (cuDNN's recurrent layers) may save other buffers.

    >>> saved_bytes(nn.Sequential(nn.Linear(5, 4), nn.Tanh()), torch.zeros(7, 5))  # 4 bytes x 7 x (5 + 4)
    252
    """
    return sum(_save(on_meta(module), meta_like(x), input_grad)[0].values())


def saved_in_turn(
    parts: Sequence[nn.Module], critics: Sequence[nn.Module | None], x: Tensor, *, input_grad: bool = True
) -> list[tuple[int, int]]:
    """Return the bytes that each part, and the critic behind it, save for backward on a batch, which they run on.

    With `input_grad`, parts behind the first one need the gradient of their input.
    """
    amounts = list[tuple[int, int]]()
    for k, (part, critic) in enumerate(zip(parts, critics, strict=True)):
        saved, y, _ = _save(part, x, input_grad and k > 0)
        x = y.detach()
        amounts.append((sum(saved.values()), 0 if critic is None else sum(_save(critic, x, True)[0].values())))
    return amounts


@contextmanager
def measuring(example: Tensor, *, without_values: bool) -> Iterator[None]:
    """Keep the random state, and report in one sentence that a network cannot be measured."""
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    except LCTError:
        raise
    except (RuntimeError, NotImplementedError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PartitionError(
            f"The network cannot be measured on a batch of shape {tuple(example.shape)}"
            f"{' without values' if without_values else ''} ({reason}); cut by layers, or name the places."
        ) from error


def probe(
    parts: list[nn.Module], x: Tensor, critic: MakeCritic, amounts: Sequence[int]
) -> tuple[list[nn.Module], list[nn.Module | None], list[Tensor]]:
    """Run the segments on `x`; return them, the critic behind each (None for the last), and the input of each.

    `amounts` are the multiply-adds of each for one sample (`counting.count_in_turn`).
    """
    inputs, critics = [x], []
    with torch.no_grad():
        for part in parts:
            inputs.append(part(inputs[-1]))
    for k, hidden in enumerate(inputs[1:-1]):
        with torch.device(hidden.device):
            module = critic(k, hidden, sum(amounts[k + 1 :]))
        if module is not None:
            module = on_meta(module) if hidden.is_meta else on_device(module, hidden.device)
        critics.append(module)
    return parts, [*critics, None], inputs[:-1]


def _flops_table(parts: Sequence[nn.Module], critics: Sequence[nn.Module | None], inputs: Sequence[Tensor]) -> Table:
    S = len(parts)
    first = [_count(part, x, False) for part, x in zip(parts, inputs, strict=True)]  # of a group
    inner = [_count(part, x, True) for part, x in zip(parts, inputs, strict=True)]
    end = [0 if c is None else _count(c, x, True) for c, x in zip(critics[:-1], inputs[1:], strict=True)] + [0]
    return [[first[a] + sum(inner[a + 1 : b]) + end[b - 1] if a < b else 0 for b in range(S + 1)] for a in range(S)]


def _bytes_table(parts: Sequence[nn.Module], critics: Sequence[nn.Module | None], inputs: Sequence[Tensor]) -> Table:
    """Return the bytes that every group's segments and critic save; a shared storage counts once."""
    S, first, inner, x = len(parts), [], [], inputs[0]
    alive, end = [x], []
    for part, critic in zip(parts, critics, strict=True):
        as_first, y, _ = _save(part, x, False)
        as_inner, hidden, saved = _save(part, x, True)
        if _storage(y) in as_first:  # the same tensor at the segment's end, made twice
            as_first[_storage(hidden)] = as_first.pop(_storage(y))
        first.append(as_first)
        inner.append(as_inner)
        x = hidden.detach()
        end.append({} if critic is None else _save(critic, x, True)[0])
        alive += [x, y, *saved]
    table = [[0] * (S + 1) for _ in range(S)]
    for a in range(S):
        union: Saved = dict(first[a])
        for b in range(a + 1, S + 1):
            table[a][b] = sum((union | end[b - 1]).values())
            union |= inner[b] if b < S else {}
    return table


def _count(module: nn.Module, x: Tensor, input_grad: bool) -> int:
    with FlopCounterMode(display=False) as counter:
        y = module(x.detach().requires_grad_(input_grad and x.is_floating_point()))
        if y.requires_grad:
            y.backward(torch.ones_like(y))
    return counter.get_total_flops() // 2


def _save(module: nn.Module, x: Tensor, input_grad: bool) -> tuple[Saved, Tensor, list[Tensor]]:
    """Return what a forward pass saves, its result, and the saved tensors, which must live while their ids are used."""
    weights = {_storage(value) for value in [*module.parameters(), *module.buffers()]}
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            saved.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = module(x.detach().requires_grad_(input_grad and x.is_floating_point()))
    return {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in saved}, y, saved


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def on_meta(module: nn.Module) -> nn.Module:
    """Copy a module, in train mode, without the values of its weights and buffers."""
    memo: dict[int, object] = {}
    for tensor in [*module.parameters(), *module.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(module, memo).train()


def on_device(module: nn.Module, device: torch.device) -> nn.Module:
    """Copy a module to a device, in train mode."""
    return copy.deepcopy(module).to(device).train()


def meta_like(x: Tensor) -> Tensor:
    """Return a meta batch like `x`, of at least two samples, which batch norm needs in training."""
    return torch.empty((max(2, x.shape[0]), *x.shape[1:]), dtype=x.dtype, device="meta")


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of the trainable weights."""
    return sum(p.numel() * p.element_size() for p in module.parameters() if p.requires_grad)
