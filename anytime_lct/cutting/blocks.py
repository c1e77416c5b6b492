"""Which legal cuts lie at the ends of blocks, and which steps count as layers.

A block is an outermost composite module that holds less than half of the network's weights, embeddings left out, and is
not a plain nn.Sequential: layer1.0 of a ResNet is one; layer1, a sequence of blocks, and the network itself are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase

from anytime_lct.cutting.steps import IN_PLACE, calls
from anytime_lct.cutting.tracing import Recording

NORMS = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
BODY_SHARE = 0.5  # a module with at least this share of the weights is the network's body, not a block


def ends_of_blocks(model: nn.Module, recording: Recording, legal: Iterable[int]) -> list[int]:
    """Return the positions of the candidates: each group has weights to train, and no group is an embedding alone.

    A block or a layer begins behind a candidate; cuts between two uses of the same weights are left out.
    """
    modules = dict(model.named_modules())
    tables = {id(p) for module in modules.values() if isinstance(module, EMBEDDINGS) for p in module.parameters()}
    sizes = {
        path: sum(p.numel() for p in module.parameters() if id(p) not in tables) for path, module in modules.items()
    }
    blocks = {
        path
        for path, module in modules.items()
        if 0 < sizes[path] < BODY_SHARE * sizes[""] and _is_composite(module) and not _is_sequence_of_blocks(module)
    }
    trained = [position for position, step in _numbered(recording) if _is_trainable(step, recording)]
    separates_uses = _separation_test(recording)
    candidates: list[int] = []
    for position in sorted(legal):
        before, after = calls(recording.steps[position - 1]), calls(recording.steps[position])
        around = [call for call in before if call in after]
        if any(path in blocks for path, _ in around) or separates_uses(position):
            continue
        begins_block = any(path in blocks for path, _ in after[len(around) :])
        if not begins_block and not is_layer(recording.steps[position], recording, embeddings=True):
            continue
        if any((candidates[-1] if candidates else 0) < end <= position for end in trained):
            candidates.append(position)
    while candidates and not any(end > candidates[-1] for end in trained):
        candidates.pop()
    return candidates


def _numbered(recording: Recording) -> Iterable[tuple[int, fx.Node]]:
    return enumerate(recording.steps, start=1)


def _is_composite(module: nn.Module) -> bool:
    """Return whether a module has parts; a norm that holds its activation, as in timm, is one layer."""
    if isinstance(module, NORMS) or type(module) is nn.Sequential:
        return False
    return any(True for _ in module.children())


def _is_sequence_of_blocks(module: nn.Module) -> bool:
    """Return whether a module is a (subclass of) Sequential that holds blocks, as in RegNet."""
    return isinstance(module, nn.Sequential) and any(_is_composite(child) for child in module.children())


def _is_trainable(step: fx.Node, recording: Recording) -> bool:
    module = recording.attributes.get(str(step.target)) if step.op == "call_module" else None
    if isinstance(module, EMBEDDINGS):
        return False
    return any(p.requires_grad for p in _weights(step, recording))


def _weights(step: fx.Node, recording: Recording) -> list[nn.Parameter]:
    """Return the parameters that a step uses: those of its module, and those passed to it, as they are or computed."""
    values = [recording.attributes.get(str(step.target))] if step.op == "call_module" else []
    inputs = list(step.all_input_nodes)
    for node in inputs:
        if node in recording.fetched:
            values += [recording.attributes[str(node.target)]] if node.op == "get_attr" else []
            inputs += [source for source in node.all_input_nodes if source not in inputs]
    inner = [list(value.parameters()) for value in values if isinstance(value, nn.Module)]
    return [p for part in inner for p in part] + [value for value in values if isinstance(value, nn.Parameter)]


def is_layer(step: fx.Node, recording: Recording, *, embeddings: bool = False) -> bool:
    """Return whether a step counts in a network's depth: it has a weight matrix and is no norm and no embedding."""
    if step.op == "call_module":
        module = recording.attributes[str(step.target)]
        if isinstance(module, NORMS) or (isinstance(module, EMBEDDINGS) and not embeddings):
            return False
    elif step.op != "call_function" or step.target in IN_PLACE or not _is_product(step):
        return False
    return any(p.dim() >= 2 for p in _weights(step, recording))


def _is_product(step: fx.Node) -> bool:
    name, origin = getattr(step.target, "__name__", ""), getattr(step.target, "__module__", None) or ""
    products = ("linear", "conv", "matmul", "mm", "einsum", "attention")
    return any(product in name for product in products) or not origin.startswith(("torch.", "_operator", "builtins"))


def _separation_test(recording: Recording) -> Callable[[int], bool]:
    """Return a function that tells whether a cut lies between two uses of the same weights or buffers."""
    spans: dict[int, tuple[int, int]] = {}
    for position, step in _numbered(recording):
        module = recording.attributes.get(str(step.target)) if step.op == "call_module" else None
        state = list(module.state_dict(keep_vars=True).values()) if isinstance(module, nn.Module) else []
        for value in [*state, *_weights(step, recording)]:
            first, _ = spans.get(id(value), (position, position))
            spans[id(value)] = (first, position)
    shared = [(first, last) for first, last in spans.values() if first < last]
    return lambda position: any(first <= position < last for first, last in shared)
