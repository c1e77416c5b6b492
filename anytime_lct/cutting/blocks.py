"""Find which legal cuts lie at the ends of blocks, and which steps count as layers.

A block is an outermost composite module that holds less than half of the network's weights and is no plain
nn.Sequential: layer1.0 of a ResNet is one, its stage layer1 and the network around both are not.
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
    """Return the candidates: each group has weights to train, and an embedding is not alone.

    What follows a candidate begins a block or is a layer; cuts that would part tied weights are left out.
    """
    modules = dict(model.named_modules())
    sizes = {path: sum(p.numel() for p in module.parameters()) for path, module in modules.items()}
    blocks = {
        path
        for path, module in modules.items()
        if 0 < sizes[path] < BODY_SHARE * sizes[""] and _is_composite(module) and not _is_stage(module)
    }
    trained = [position for position, step in _numbered(recording) if _is_trainable(step, recording)]
    parts_weights = _parting(recording)
    found: list[int] = []
    for position in sorted(legal):
        before, after = calls(recording.steps[position - 1]), calls(recording.steps[position])
        inside = [call for call in before if call in after]
        if any(path in blocks for path, _ in inside) or parts_weights(position):
            continue
        begins_block = any(path in blocks for path, _ in after[len(inside) :])
        if not begins_block and not weighs(recording.steps[position], recording, embeddings=True):
            continue
        if any((found[-1] if found else 0) < end <= position for end in trained):
            found.append(position)
    while found and not any(end > found[-1] for end in trained):
        found.pop()
    return found


def _numbered(recording: Recording) -> Iterable[tuple[int, fx.Node]]:
    return enumerate(recording.steps, start=1)


def _is_composite(module: nn.Module) -> bool:
    """A norm with its activation inside, as timm has them, is one layer."""
    if isinstance(module, NORMS) or type(module) is nn.Sequential:
        return False
    return any(True for _ in module.children())


def _is_stage(module: nn.Module) -> bool:
    """A subclass of Sequential that holds blocks, like the stages of a RegNet, is no block itself."""
    return isinstance(module, nn.Sequential) and any(_is_composite(child) for child in module.children())


def _is_trainable(step: fx.Node, recording: Recording) -> bool:
    module = recording.attributes.get(str(step.target)) if step.op == "call_module" else None
    if isinstance(module, EMBEDDINGS):
        return False
    return any(p.requires_grad for p in _weights(step, recording))


def _weights(step: fx.Node, recording: Recording) -> list[nn.Parameter]:
    """Parameters that a step uses: its module's, and those passed to it."""
    values = [recording.attributes.get(str(step.target))] if step.op == "call_module" else []
    values += [recording.attributes[str(node.target)] for node in step.all_input_nodes if node.op == "get_attr"]
    inner = [list(value.parameters()) for value in values if isinstance(value, nn.Module)]
    return [p for part in inner for p in part] + [value for value in values if isinstance(value, nn.Parameter)]


def weighs(step: fx.Node, recording: Recording, *, embeddings: bool = False) -> bool:
    """Tell whether a step counts in a network's depth: a weight matrix, no norm, no embedding."""
    if step.op == "call_module":
        module = recording.attributes[str(step.target)]
        if isinstance(module, NORMS) or (isinstance(module, EMBEDDINGS) and not embeddings):
            return False
    elif step.op != "call_function" or step.target in IN_PLACE or not _is_product(step):
        return False
    return any(p.dim() >= 2 for p in _weights(step, recording))


def _is_product(step: fx.Node) -> bool:
    name, origin = getattr(step.target, "__name__", ""), getattr(step.target, "__module__", None) or ""
    known = ("linear", "conv", "matmul", "mm", "einsum", "attention")
    return any(part in name for part in known) or not origin.startswith(("torch.", "_operator", "builtins"))


def _parting(recording: Recording) -> Callable[[int], bool]:
    """Return a test whether a cut would part two uses of the same weights or buffers."""
    spans: dict[int, tuple[int, int]] = {}
    for position, step in _numbered(recording):
        module = recording.attributes.get(str(step.target)) if step.op == "call_module" else None
        state = list(module.state_dict(keep_vars=True).values()) if isinstance(module, nn.Module) else []
        for value in [*state, *_weights(step, recording)]:
            first, _ = spans.get(id(value), (position, position))
            spans[id(value)] = (first, position)
    shared = [(first, last) for first, last in spans.values() if first < last]
    return lambda position: any(first <= position < last for first, last in shared)
