"""Multiply-adds and parameters of layer groups, critics and sub-models, counted by fvcore.

One multiply-add counts one, as fvcore, torchvision and timm have it, for one sample (of a text: one character). An
operator that fvcore cannot count is an error that names it, unless it stands in the list of free ones.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from anytime_lct.errors import AnalysisError
from anytime_lct.network import carrying, probing
from anytime_lct.profile import Cost

with warnings.catch_warnings():  # fvcore compiles its jitter with the deprecated torch.jit.script when imported
    warnings.simplefilter("ignore", FutureWarning)
    from fvcore.nn import FlopCountAnalysis

# Operators that move, compare or make data, or touch each value once, and that fvcore, torchvision's and timm's tables
# count as nothing beside convolutions and matrix products, too.
FREE = frozenset(
    f"aten::{name}"
    for name in (
        # arithmetic by element
        "add add_ sub sub_ mul mul_ div div_ pow sqrt rsqrt exp log neg abs reciprocal rsub square sign bernoulli_ "
        # activations
        "relu relu_ relu6 hardtanh hardtanh_ sigmoid sigmoid_ tanh tanh_ silu silu_ gelu elu elu_ leaky_relu leaky_relu_ "
        "hardswish hardswish_ hardsigmoid hardsigmoid_ softplus mish mish_ prelu softmax log_softmax "
        # pooling and reductions
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_max_pool2d adaptive_avg_pool1d mean "
        "sum amax max min argmax feature_dropout alpha_dropout dropout dropout_ "
        # shapes, copies, look-ups
        "embedding flatten unflatten view reshape permute transpose t unsqueeze squeeze expand expand_as repeat clone "
        "stack cat chunk split split_with_sizes unbind select slice narrow index gather roll pad constant_pad_nd "
        "zeros zeros_like ones ones_like full full_like empty new_empty new_zeros new_ones new_full arange to type_as "
        "contiguous detach size Int ScalarImplicit masked_fill where eq ne lt le gt ge clamp clamp_ pixel_shuffle "
        "channel_shuffle fill_ copy_ "
    ).split()
)


def count(module: nn.Module, example: Tensor) -> Cost:
    """Count a module on `example`, one sample (batch 1): images, maps and vectors, or a text (1, T) or (1, T, F).

    Texts and sequences are counted by the character: their cost is divided by T. Raises AnalysisError naming an
    operator without a count.
    """
    with probing(module), torch.random.fork_rng(devices=[]), _quiet():
        analysis = FlopCountAnalysis(module, example)
        analysis.set_op_handle(**{f"aten::{name}": _recurrent for name in ("lstm", "gru", "rnn_tanh", "rnn_relu")})
        analysis.set_op_handle("aten::scaled_dot_product_attention", _attention)
        total = int(analysis.total())
        unknown = {name for name in analysis.unsupported_ops() if name not in FREE}
        where = {
            name: next((path for path, _ in module.named_modules() if path and analysis.unsupported_ops(path)[name]), "")
            for name in unknown
        }
    if unknown:
        first = sorted(unknown)[0]
        place = f" in '{where[first]}'" if where[first] else ""
        raise AnalysisError(
            f"The operator '{first}'{place} has no count of multiply-adds, so that no honest figure can be given; replace it "
            f"by an operator that fvcore knows."
        )
    steps = example.shape[1] if example.dim() == 3 or not example.is_floating_point() else 1
    return Cost(flops=round(total / steps), params=sum(p.numel() for p in module.parameters()))


def components(
    groups: Sequence[nn.Module], critics: Sequence[nn.Module], example: Tensor
) -> tuple[tuple[Cost, ...], tuple[Cost, ...]]:
    """Count every layer group and every critic on what the group before it hands on; `example` is one input."""
    of_groups, of_critics = [], []
    hidden = example
    for number, group in enumerate(groups):
        of_groups.append(count(group, hidden))
        with probing(group), carrying(group):
            hidden = group(hidden)
        if number < len(critics):
            of_critics.append(count(critics[number], hidden))
    return tuple(of_groups), tuple(of_critics)


def _recurrent(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Every weight matrix of every layer and direction multiplies once a time step: numel x B x T.

    The weights come as the list that torch's operator takes, (gates x H, I) and (gates x H, H) and biases.
    """
    batch, steps = inputs[0].type().sizes()[:2]
    weights = [value.type().sizes() for value in inputs[2].node().inputs()]
    return Counter({"recurrent": batch * steps * sum(prod(sizes) for sizes in weights if len(sizes) == 2)})


def _attention(inputs: list[Any], outputs: list[Any]) -> Counter[str]:
    """Scores and weighted sum: B x heads x T x S x (E + E_v)."""
    query, value = inputs[0].type().sizes(), inputs[2].type().sizes()
    return Counter({"attention": prod(query[:-1]) * value[-2] * (query[-1] + value[-1])})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the tracer's and fvcore's remarks off the user's screen."""
    logger = logging.getLogger("fvcore.nn.jit_analysis")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
