"""Multiply-adds and parameters of a module, counted by fvcore on one traced forward pass.

Products of tensors count, one for each multiply-add, as papers, torchvision and timm count: convolutions, linear
layers, matrix products, attention, recurrent layers. Norms, activations, pooling, sums, interpolation, and operators
that move or compare values are free. An operator that is neither is counted by torch's own counter, from the shapes it
reads; where that counts nothing either, a CountWarning names it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from anytime_lct.errors import AnalysisError, CountWarning
from anytime_lct.exits.profile import Cost
from anytime_lct.modes import carrying, probing

with warnings.catch_warnings():  # fvcore compiles a loss on import, with a function that torch has deprecated
    warnings.simplefilter("ignore")
    from fvcore.nn import FlopCountAnalysis


# Free in addition to what fvcore ignores (copies, shapes, integers, relu, dropout).
ELEMENTWISE = """
    add add_ sub sub_ rsub mul mul_ div div_ neg abs square sqrt rsqrt reciprocal pow exp expm1 log log1p log2 erf
    sin cos atan2 clamp_min clamp_max minimum maximum lerp addcmul addcdiv ceil round sign sigmoid sigmoid_ tanh
    tanh_ gelu gelu_ silu silu_ mish mish_ elu elu_ selu selu_ celu celu_ softplus softsign relu6 leaky_relu
    leaky_relu_ prelu rrelu hardtanh hardtanh_ hardsigmoid hardsigmoid_ hardswish hardswish_ hardshrink softshrink
    tanhshrink threshold threshold_ log_sigmoid glu softmax log_softmax logsumexp dropout_ feature_dropout
    alpha_dropout feature_alpha_dropout
"""
AVERAGING = """
    batch_norm group_norm layer_norm instance_norm rms_norm local_response_norm linalg_vector_norm norm
    _weight_norm cosine_similarity mean sum cumsum cumprod logcumsumexp var std var_mean std_mean avg_pool1d
    avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_bicubic2d
    upsample_trilinear3d _upsample_nearest_exact2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler
"""
COMPARING = """
    median fractional_max_pool2d fractional_max_pool3d max_pool1d max_pool2d max_pool3d adaptive_max_pool1d
    adaptive_max_pool2d adaptive_max_pool3d amax amin min argmax argmin topk sort argsort ne lt le where
    logical_and logical_or logical_not __or__ isnan
"""
MOVING = """
    embedding embedding_bag index_select one_hot take_along_dim scatter masked_fill_ tril triu pad rot90 roll
    affine_grid_generator col2im reflection_pad1d reflection_pad2d replication_pad1d replication_pad2d
    pixel_shuffle pixel_unshuffle channel_shuffle flip repeat repeat_interleave tile movedim swapaxes view_as
    reshape_as expand_as unflatten unfold im2col clone alias lift_fresh detach_ fill_ zero_ ones_like empty_like
    new_ones rand rand_like randn_like mH view_as_complex view_as_real tensor scalar_tensor item numel dim Bool
    Float is_floating_point tensor_split unsafe_chunk unsafe_split broadcast_tensors meshgrid squeeze_ transpose_
    mT T _pack_padded_sequence _pad_packed_sequence resolve_conj resolve_neg
"""
FREE = frozenset(f"aten::{name}" for names in (ELEMENTWISE, AVERAGING, COMPARING, MOVING) for name in names.split())


def count(module: nn.Module, example: Tensor, *, steps: int | None = None) -> Cost:
    """Count a module's distinct parameters, and its multiply-adds for one sample in evaluation mode.

    `example` has batch 1. A sample of text is one character: the count is divided by `steps`, by default T
    where the example is int64 (1, T), and otherwise 1; pass steps=T for hidden sequences (1, T, F). The module
    and the random state are unchanged. Warns of operators without a count; raises AnalysisError.

    >>> count(nn.Linear(4, 3), torch.zeros(1, 4))
    Cost(flops=12, params=15)
    """
    cost, uncounted = _cost(module, example, _steps(example) if steps is None else steps)
    _warn(uncounted)
    return cost


def count_in_turn(parts: Iterable[nn.Module], x: Tensor) -> tuple[list[int], list[Tensor]]:
    """Return the multiply-adds of each part for the first sample of `x`, and its output for the batch.

    Each part reads the output of the one before. For choosing among cuts: it does not warn.

    >>> count_in_turn([nn.Linear(7, 6), nn.Linear(6, 5)], torch.zeros(3, 7))[0]
    [42, 30]
    """
    amounts, outputs = list[int](), list[Tensor]()
    for part in parts:
        outputs.append(_output(part, x))
        amounts.append(_multiply_adds(part, x[:1])[0])
        x = outputs[-1]
    return amounts, outputs


def component_costs(
    groups: Iterable[nn.Module], critics: Iterable[nn.Module], example: Tensor
) -> tuple[tuple[Cost, ...], tuple[Cost, ...]]:
    """Return the cost of every layer group and of every critic; `example` (batch 1) is the input of the first group.

    Where the last group answers at every step of a text (1, T), a sample is one character, as in `count`.

    >>> of_groups, of_critics = component_costs(network.groups, network.critics, torch.zeros(1, 3, 32, 32))
    """
    parts, inputs, uncounted = list(groups), [example], set[str]()
    for group in parts:
        inputs.append(_output(group, inputs[-1]))
    steps = _steps(example) if inputs[-1].dim() > 2 else 1
    of_groups, of_critics = list[Cost](), list[Cost]()
    for group, critic, read, hidden in zip_longest(parts, critics, inputs[:-1], inputs[1:]):
        cost, names = _cost(group, read, steps)
        of_groups.append(cost)
        uncounted |= names
        if critic is not None:
            cost, names = _cost(critic, hidden, steps)
            of_critics.append(cost)
            uncounted |= names
    _warn(uncounted)
    return tuple(of_groups), tuple(of_critics)


def _cost(module: nn.Module, example: Tensor, steps: int) -> tuple[Cost, set[str]]:
    """Return the cost of a module for one sample, and the operators without a count."""
    if example.shape[0] != 1:
        raise AnalysisError(f"Expected an example with batch 1 to count, got a tensor of shape {tuple(example.shape)}.")
    total, uncounted = _multiply_adds(module, example)
    if total % steps:
        raise AnalysisError(
            f"Expected a number of multiply-adds that {steps} characters share evenly, got {total}; a network with a "
            f"part that runs once for a whole text has no cost per character."
        )
    return Cost(flops=total // steps, params=sum(p.numel() for p in module.parameters())), uncounted


def _warn(uncounted: set[str]) -> None:
    if uncounted:
        operators = ", ".join(sorted(uncounted))
        warnings.warn(
            f"Multiply-adds are counted without {operators}, of which no count is known; costs are too low by these.",
            CountWarning,
            stacklevel=3,
        )


def _output(module: nn.Module, x: Tensor) -> Tensor:
    with probing(module), carrying(module):
        return module(x.to(_device(module)))


def _steps(example: Tensor) -> int:
    return example.shape[1] if example.dim() == 2 and not example.is_floating_point() else 1


def _multiply_adds(module: nn.Module, example: Tensor) -> tuple[int, set[str]]:
    """Return the multiply-adds of a forward pass, and the operators without a count, which add nothing."""
    x = example.to(_device(module))
    analysis = FlopCountAnalysis(module, (x,)).set_op_handle(**HANDLES)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    try:
        with _undisturbed(module):
            try:
                total = analysis.total()
            except Exception:  # torch.jit cannot trace all that runs
                return _run_counted(module, x)
            amounts = dict.fromkeys(analysis.unsupported_ops(), 0)
            if amounts:

                def add(kind: str, inputs: list[Any], outputs: list[Any]) -> Any:
                    amounts[kind] += (amount := _by_torch(kind, inputs, outputs))
                    return amount

                total = analysis.set_op_handle(**{kind: partial(add, kind) for kind in amounts}).total()
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise AnalysisError(
            f"Expected {type(module).__name__} to run on an input of shape {tuple(example.shape)} for "
            f"counting, got: {reason}."
        ) from error
    return int(total), {kind for kind, amount in amounts.items() if not amount}


def _run_counted(module: nn.Module, x: Tensor) -> tuple[int, set[str]]:
    """Count a forward pass by torch's counter, which knows no recurrent layers, and no attention in one operator."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module(x)
    recurrent = {type(part).__name__ for part in module.modules() if isinstance(part, nn.RNNBase)}
    return counter.get_total_flops() // 2, recurrent


def _by_torch(kind: str, inputs: list[Any], outputs: list[Any]) -> int:
    """Run an operator under torch's counter, on tensors without values; 0 where that cannot be done."""
    try:
        namespace, name = kind.split("::")
        arguments = [_argument(value) for value in inputs]
        while arguments and arguments[-1] is None:  # a default, which may be allowed as a keyword only
            del arguments[-1]
        with FlopCounterMode(display=False) as counter:
            getattr(getattr(torch.ops, namespace), name)(*arguments)
    except Exception:  # it has no form without values, or reads what is known only while it runs
        return 0
    return counter.get_total_flops() // 2


def _argument(value: Any) -> Any:
    if isinstance(value.type(), torch.TensorType):
        return torch.empty(_shape(value), dtype=value.type().dtype(), device="meta")
    if value.node().kind() == "prim::ListConstruct":
        return [_argument(element) for element in value.node().inputs()]
    return value.toIValue()


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


def _deformed(inputs: list[Any], outputs: list[Any]) -> int:
    """A convolution of x by weights (O, I / groups, ..): all weights at every position."""
    batch, _, *positions = _shape(outputs[0])
    return batch * prod(positions) * prod(_shape(inputs[1]))


def _bilinear(inputs: list[Any], outputs: list[Any]) -> int:
    """x (.., I) and y (.., J) by weights (O, I, J)."""
    return prod(_shape(outputs[0])[:-1]) * prod(_shape(inputs[2]))


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
    **{f"aten::{name}": _matmul for name in ("matmul", "mm", "bmm", "mv", "dot", "vdot", "cdist")},
    **{f"aten::{name}": _recurrent for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    "aten::baddbmm": _added_matmul,
    "aten::einsum": partial(_by_torch, "aten::einsum"),
    "aten::bilinear": _bilinear,
    "torchvision::deform_conv2d": _deformed,
    "aten::scaled_dot_product_attention": _attention,
}
