"""Multiply-adds and parameters of a module, counted by fvcore on one traced forward pass.

Products of tensors count, one for each multiply-add, as papers, torchvision and timm count: convolutions, linear
layers, matrix products, attention, recurrent layers. Norms, activations, pooling, sums, interpolation, and operators
that move or compare values are free. An operator that is neither is an error, so that no number is too small.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import zip_longest
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from anytime_lct.errors import AnalysisError
from anytime_lct.exits.profile import Cost
from anytime_lct.modes import carrying, probing

with warnings.catch_warnings():  # fvcore compiles a loss on import, with a function that torch has deprecated
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis


# Free in addition to what fvcore ignores (copies, shapes, integers, relu, dropout).
ELEMENTWISE = """
    add add_ sub sub_ rsub mul mul_ div div_ neg abs square sqrt rsqrt reciprocal pow exp expm1 log log1p log2 erf
    sin cos atan2 clamp_min clamp_max minimum maximum lerp addcmul addcdiv ceil round sign sigmoid sigmoid_ tanh
    tanh_ gelu gelu_ silu silu_ mish mish_ elu elu_ selu selu_ celu celu_ softplus softsign relu6
    leaky_relu leaky_relu_ prelu rrelu hardtanh hardtanh_ hardsigmoid hardsigmoid_ hardswish hardswish_
    hardshrink softshrink tanhshrink threshold threshold_ log_sigmoid glu softmax log_softmax logsumexp dropout_
    feature_dropout alpha_dropout feature_alpha_dropout
"""
AVERAGING = """
    batch_norm group_norm layer_norm instance_norm rms_norm local_response_norm linalg_vector_norm norm weight_norm
    mean sum cumsum var std var_mean std_mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_nearest_exact2d
    _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler
"""
COMPARING = """
    max_pool1d max_pool2d max_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d amax amin
    min argmax argmin topk sort argsort ne lt le where logical_and logical_or logical_not __or__ isnan
"""
MOVING = """
    embedding embedding_bag index_select one_hot take_along_dim scatter masked_fill_ tril triu pad
    reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d pixel_shuffle pixel_unshuffle
    channel_shuffle flip repeat repeat_interleave tile movedim swapaxes view_as reshape_as expand_as
    unflatten unfold im2col clone alias lift_fresh detach_ fill_ zero_ ones_like empty_like new_ones
    tensor scalar_tensor item numel dim Bool Float is_floating_point tensor_split unsafe_chunk
    unsafe_split broadcast_tensors meshgrid squeeze_ transpose_ mT T _pack_padded_sequence
    _pad_packed_sequence resolve_conj resolve_neg
"""
FREE = frozenset(f"aten::{name}" for names in (ELEMENTWISE, AVERAGING, COMPARING, MOVING) for name in names.split())


def count(module: nn.Module, example: Tensor, *, steps: int | None = None) -> Cost:
    """Count a module's distinct parameters, and its multiply-adds for one sample in evaluation mode.

    `example` has batch 1. A sample of text is one character: the count is divided by `steps`, by default T
    where the example is int64 (1, T), and otherwise 1; pass steps=T for hidden sequences (1, T, F). The module
    and the random state are unchanged. Raises AnalysisError where an operator has no count.

    >>> count(nn.Linear(4, 3), torch.zeros(1, 4))
    Cost(flops=12, params=15)
    """
    if example.shape[0] != 1:
        raise AnalysisError(f"Expected an example with batch 1 to count, got a tensor of shape {tuple(example.shape)}.")
    steps = _steps(example) if steps is None else steps
    total = _multiply_adds(module, example)
    if total % steps:
        raise AnalysisError(
            f"Expected a number of multiply-adds that {steps} characters share evenly, got {total}; a network with a "
            f"part that runs once for a whole text has no cost per character."
        )
    return Cost(flops=total // steps, params=sum(p.numel() for p in module.parameters()))


def count_in_turn(parts: Iterable[nn.Module], x: Tensor) -> tuple[list[int], list[Tensor]]:
    """Return the multiply-adds of each part for the first sample of `x`, and its output for the batch.

    Each part reads the output of the one before. For choosing among cuts: an operator without a count is free here.

    >>> count_in_turn([nn.Linear(7, 6), nn.Linear(6, 5)], torch.zeros(3, 7))[0]
    [42, 30]
    """
    amounts, outputs = list[int](), list[Tensor]()
    for part in parts:
        outputs.append(_output(part, x))
        amounts.append(_multiply_adds(part, x[:1], strict=False))
        x = outputs[-1]
    return amounts, outputs


def component_costs(
    groups: Iterable[nn.Module], critics: Iterable[nn.Module], example: Tensor
) -> tuple[tuple[Cost, ...], tuple[Cost, ...]]:
    """Return the cost of every layer group and of every critic; `example` (batch 1) is the input of the first group.

    >>> of_groups, of_critics = component_costs(network.groups, network.critics, torch.zeros(1, 3, 32, 32))
    """
    steps, hidden = _steps(example), example
    of_groups, of_critics = [], []
    for group, critic in zip_longest(groups, critics):
        of_groups.append(count(group, hidden, steps=steps))
        if critic is not None:
            hidden = _output(group, hidden)
            of_critics.append(count(critic, hidden, steps=steps))
    return tuple(of_groups), tuple(of_critics)


def _output(module: nn.Module, x: Tensor) -> Tensor:
    with probing(module), carrying(module):
        return module(x.to(_device(module)))


def _steps(example: Tensor) -> int:
    return example.shape[1] if example.dim() == 2 and not example.is_floating_point() else 1


def _multiply_adds(module: nn.Module, example: Tensor, *, strict: bool = True) -> int:
    analysis = FlopCountAnalysis(module, (example.to(_device(module)),))
    analysis.set_op_handle(**HANDLES)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    try:
        with _undisturbed(module):
            total = analysis.total()
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise AnalysisError(
            f"Expected {type(module).__name__} to run on an input of shape {tuple(example.shape)} for "
            f"counting, got: {reason}."
        ) from error
    if (missing := analysis.unsupported_ops()) and strict:
        operator = sorted(missing)[0]
        path, owner = [item for item in module.named_modules() if operator in analysis.unsupported_ops(item[0])][-1]
        where = f"module '{path}' ({type(owner).__name__})" if path else type(owner).__name__
        raise AnalysisError(
            f"The operator {operator} in {where} has no count of multiply-adds; add one in counting.py, or list it "
            f"there as free."
        )
    return int(total)


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, plain attention, no warnings; hidden and random state are restored."""
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    with probing(module), carrying(module), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.mha.set_fastpath_enabled(False)  # it runs one operator that hides its matrices
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_attention)


def _device(module: nn.Module) -> torch.device:
    return next((value.device for value in (*module.parameters(), *module.buffers())), torch.device("cpu"))


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.type().sizes())


def _zero(inputs: list[Any], outputs: list[Any]) -> int:
    """The count of a free operator; it replaces fvcore's own handles of norms, averages and interpolation."""
    return 0


def _matmul(inputs: list[Any], outputs: list[Any]) -> int:
    return prod(_shape(outputs[0])) * _shape(inputs[0])[-1]


def _added_matmul(inputs: list[Any], outputs: list[Any]) -> int:
    return _matmul(inputs[1:], outputs)


def _einsum(inputs: list[Any], outputs: list[Any]) -> int:
    """The product of two tensors: one multiply-add for every combination of the values of all letters."""
    letters = inputs[0].toIValue().replace(" ", "").split("->")[0].split(",")
    shapes = [_shape(value) for value in inputs[1].node().inputs()]
    if len(letters) > 2 or any(len(word) != len(shape) for word, shape in zip(letters, shapes, strict=True)):
        raise NotImplementedError("einsum with an ellipsis or more than two tensors")
    pairs = (
        (name, size)
        for word, shape in zip(letters, shapes, strict=True)
        for name, size in zip(word, shape, strict=True)
    )
    return prod(dict(pairs).values())


def _attention(inputs: list[Any], outputs: list[Any]) -> int:
    """Queries (.., L, E) by keys (.., S, E), then weights (.., L, S) by values (.., S, V)."""
    query, key, value = (_shape(tensor) for tensor in inputs[:3])
    return prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _recurrent(inputs: list[Any], outputs: list[Any]) -> int:
    """Each weight matrix (of gates, layers, directions, projection) is used once per sample and time step."""
    lists = [value.node() for value in inputs if value.node().kind() == "prim::ListConstruct"]
    weights = [_shape(value) for value in lists[-1].inputs()]
    return prod(_shape(inputs[0])[:-1]) * sum(prod(shape) for shape in weights if len(shape) == 2)


HANDLES: dict[str, Callable[[list[Any], list[Any]], Any]] = {
    **dict.fromkeys(FREE, _zero),
    **{f"aten::{name}": _matmul for name in ("matmul", "mm", "bmm", "mv", "dot")},
    **{f"aten::{name}": _recurrent for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    "aten::baddbmm": _added_matmul,
    "aten::einsum": _einsum,
    "aten::scaled_dot_product_attention": _attention,
}
