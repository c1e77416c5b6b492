"""Numbers that would cross a cut beside its tensor become constants, or the size of the batch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from anytime_lct.cutting.sizes import BATCH, Sizes, UnknownError
from anytime_lct.cutting.steps import is_tensor
from anytime_lct.cutting.tracing import Recording


def with_constants(recording: Recording, crossing: Iterable[fx.Node], example: Tensor) -> Recording:
    """Replace numbers that are read of shapes, where they or what they come from are among the values that cross cuts.

        x, H, W = patch_embed(x)         H, W, which blocks read:    for inputs of 224x224
        for block in blocks:             two numbers beside x        14, 14, and x crosses alone
            x = block(x, H, W)

    With a constant among them, the recording is for inputs of the shape of `example`, (B, ..).
    """
    graph, sizes = recording.input.graph, Sizes(example, recording.attributes.__getitem__)
    numbers, batch_size, shape = set(crossing), set(recording.batch_size), recording.shape
    for node in list(graph.nodes):
        if numbers.isdisjoint((node, *node.all_input_nodes)) or is_tensor(node) or node in recording.fetched:
            continue
        numbers.add(node)
        try:
            value = sizes.of(node)
        except UnknownError:
            continue
        if value is BATCH:
            with graph.inserting_after(recording.input):
                value = graph.call_method("size", (recording.input, 0))
            value.meta["calls"] = ()
            batch_size.add(value)
        else:
            shape = tuple(example.shape[1:])
        for user in list(node.users):
            user.args, user.kwargs = map_arg((user.args, user.kwargs), partial(_replaced, node, value))
    for node in reversed(list(graph.nodes)):
        if node in numbers and not node.users:
            graph.erase_node(node)
            numbers.remove(node)
            numbers |= {source for source in node.all_input_nodes if not is_tensor(source)}
    left = set(graph.nodes)
    steps = tuple(step for step in recording.steps if step in left)
    return replace(recording, steps=steps, batch_size=frozenset(batch_size), shape=shape)


def _replaced(number: fx.Node, value: Any, node: fx.Node) -> Any:
    """Return the value that stands for a number, and any other node as it is."""
    if node is not number:
        return node
    return tuple(value) if isinstance(value, torch.Size) else value
