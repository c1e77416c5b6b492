"""ONNX graphs of layer groups, critics and whole sub-models, from one call of torch's exporter.

Groups and critics are exported side by side, each with its own input, into one graph, the sheet. Nothing connects them
there, so that each can be cut out of it, and an exit is the chain of its parts:

    the sheet   input -> group_1    hidden_1 -> group_2    hidden_2 -> group_3
                                    hidden_1 -> critic_1   hidden_2 -> critic_2
    exit 2      input -> group_1 =  hidden_1 -> group_2 =  hidden_2 -> critic_2

So an exit and the chain of its groups have the same nodes (but see `read_input_once`), and one call of the exporter
takes a third of the time of seven.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx.checker
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from anytime_lct import __version__
from anytime_lct.errors import ExportError
from anytime_lct.export.nodes import expose_states, forget_shapes, read_input_once, unfold_norms
from anytime_lct.export.pooling import PoolingByWindows

OPSET = 18
RESERVED = ("input", "input_once", "hidden", "logits")
NOISY_LOGGERS = ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
PROTOBUF_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Sheet:
    """Groups 1..`num_groups` of a network and some critics, exported side by side and not connected.

    `dynamic` names the leading dimensions of every tensor, which are dynamic: ("batch",) or ("batch", "time").
    `complete` is whether the last group ends the network.
    """

    model: onnx.ModelProto
    num_groups: int
    complete: bool
    dynamic: tuple[str, ...]

    def group(self, i: int) -> onnx.ModelProto:
        """Return layer group i, "input" -> "hidden", or "logits" where it is the last; of a text with states."""
        is_last = self.complete and i == self.num_groups
        model = _chain(self, f"group_{i}", [_group(i)], "logits" if is_last else "hidden")
        read_input_once(model.graph)
        return self._continued(model)

    def critic(self, i: int) -> onnx.ModelProto:
        """Return critic i, "input" -> "logits", of a text with states."""
        return self._continued(_chain(self, f"critic_{i}", [(f"hidden_{i}", f"critic_{i}")], "logits"))

    def exit(self, i: int) -> onnx.ModelProto:
        """Return sub-model i, "input" -> "logits"."""
        parts = [_group(k) for k in range(1, i + 1)]
        if not (self.complete and i == self.num_groups):
            parts.append((f"hidden_{i}", f"critic_{i}"))
        return _chain(self, f"exit_{i}", parts, "logits")

    def _continued(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Return a part, of a text with inputs and outputs for the states of its recurrent layers."""
        if "time" in self.dynamic:
            expose_states(model.graph)
            onnx.checker.check_model(model, full_check=True)
        return model


def export_sheet(
    groups: Sequence[nn.Module],
    critics: Mapping[int, nn.Module],
    example: Tensor,
    dynamic: tuple[str, ...],
    *,
    complete: bool,
) -> Sheet:
    """Export f_1..f_G and the critics {i: c_i} behind them; `complete` says that f_G ends the network.

    The modules must be in evaluation mode on the CPU; `example` is an input of group 1, with sizes of at least 2 in its
    `dynamic` dimensions. Batch norms become part of a convolution, or a product and a sum. Raises ExportError, which
    names the part that cannot be exported.
    """
    modules = nn.ModuleList([*groups, *critics.values()])
    weights = sum(p.numel() * p.element_size() for p in modules.parameters())
    if weights > PROTOBUF_LIMIT:
        raise ExportError(
            f"Expected at most 2 GB of weights, the limit of an ONNX file, got {weights / 1e9:.1f} GB; export fewer "
            f"exits."
        )
    inputs = {"input": example}
    with torch.no_grad():
        for i, group in enumerate(groups, start=1):
            if i < len(groups) or i in critics:
                inputs[f"hidden_{i}"] = group(list(inputs.values())[-1])
    parts: dict[str, tuple[nn.Module, str]] = {_group(i)[1]: (g, _group(i)[0]) for i, g in enumerate(groups, start=1)}
    parts |= {f"critic_{i}": (critic, f"hidden_{i}") for i, critic in critics.items()}
    try:
        model = _translate(parts, inputs, dynamic)
    except Exception as error:
        raise ExportError(_explain(error, parts, inputs, dynamic)) from error
    unfold_norms(model.graph)
    return Sheet(model, len(groups), complete, dynamic)


class _SideBySide(nn.Module):
    """Runs every part on one of the inputs, `reads` by index."""

    def __init__(self, parts: Sequence[nn.Module], reads: Sequence[int]) -> None:
        super().__init__()
        self.parts, self.reads = nn.ModuleList(parts), tuple(reads)
        self.training = False

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with PoolingByWindows():
            return tuple(part(inputs[index]) for part, index in zip(self.parts, self.reads, strict=True))


def _translate(
    parts: Mapping[str, tuple[nn.Module, str]], inputs: Mapping[str, Tensor], dynamic: Sequence[str]
) -> onnx.ModelProto:
    names = [name for name in inputs if any(name == reads for _, reads in parts.values())]
    sizes = tuple({d: torch.export.Dim(f"{label}_{n}") for d, label in enumerate(dynamic)} for n in range(len(names)))
    with _quiet():
        program = torch.onnx.export(
            _SideBySide([part for part, _ in parts.values()], [names.index(reads) for _, reads in parts.values()]),
            tuple(inputs[name] for name in names),
            dynamo=True,
            dynamic_shapes=(sizes,),
            opset_version=OPSET,
            external_data=False,
            input_names=names,
            output_names=list(parts),
            verbose=False,
            optimize=False,
        )
        assert program is not None
        if "time" in dynamic:
            forget_shapes(program.model.graph)
        program.optimize()
        return program.model_proto


def _explain(
    error: Exception,
    parts: Mapping[str, tuple[nn.Module, str]],
    inputs: Mapping[str, Tensor],
    dynamic: Sequence[str],
) -> str:
    """Return a message that names the part that fails, which is found by exporting each alone."""
    part_name = "The network"
    for name, (part, reads) in parts.items():
        try:
            _translate({name: (part, reads)}, inputs, dynamic)
        except Exception as cause:
            kind, _, number = name.partition("_")
            part_name, error = f"{'Layer group' if kind == 'group' else 'Critic'} {number}", cause
            break
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{part_name} cannot be exported to ONNX: {lines[0] if lines else type(error).__name__}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the prints, warnings and logs of torch's exporter."""
    loggers = [(logger, logger.level) for logger in map(logging.getLogger, NOISY_LOGGERS)]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for logger, _ in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in loggers:
                logger.setLevel(level)


def _group(i: int) -> tuple[str, str]:
    """Return the names of what group i reads and writes in the sheet."""
    return ("input" if i == 1 else f"hidden_{i - 1}", f"group_{i}")


def _chain(sheet: Sheet, name: str, parts: Sequence[tuple[str, str]], result: str) -> onnx.ModelProto:
    """Cut the parts (source, sink) out of the sheet and connect them, each reading the sink of the one before."""
    graph = sheet.model.graph
    nodes = [graph.node[k] for k in dict.fromkeys(k for part in parts for k in _between(graph, *part))]
    used = {value for node in nodes for value in (*node.input, *node.output)}
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    renamed = {value: f"{value}_inner" for value in RESERVED if value in used}
    renamed |= {source: sink for (source, _), (_, sink) in zip(parts[1:], parts, strict=False)}
    renamed |= {parts[0][0]: "input", parts[-1][1]: result}
    chain = helper.make_graph(
        [_copy(node, renamed) for node in nodes],
        name,
        [_value_info(graph.input, parts[0][0], "input", sheet.dynamic)],
        [_value_info(graph.output, parts[-1][1], result, sheet.dynamic)],
        [numpy_helper.from_array(numpy_helper.to_array(t), renamed.get(t.name, t.name)) for t in weights],
    )
    model = helper.make_model(
        chain,
        opset_imports=sheet.model.opset_import,
        functions=sheet.model.functions,
        ir_version=sheet.model.ir_version,
        producer_name="anytime-lct",
        producer_version=__version__,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _between(graph: onnx.GraphProto, source: str, sink: str) -> list[int]:
    """Return the indices of the nodes on which `sink` depends, from `source` on, in the graph's order."""
    makers = {value: k for k, node in enumerate(graph.node) for value in node.output if value}
    entries = {value.name for value in graph.input} - {source}
    indices: set[int] = set()
    open_values = [sink]
    while open_values:
        value = open_values.pop()
        if value in entries:
            raise ExportError(
                f"Expected {sink} to depend on {source} alone, but it reads {value}; report this as a bug."
            )
        if value in makers and makers[value] not in indices:
            indices.add(makers[value])
            open_values.extend(name for name in graph.node[makers[value]].input if name)
    return sorted(indices)


def _copy(node: onnx.NodeProto, renamed: Mapping[str, str]) -> onnx.NodeProto:
    """Copy a node without the exporter's metadata, which holds source code and paths of this machine."""
    copy = onnx.NodeProto(op_type=node.op_type, domain=node.domain, name=node.name)
    copy.input.extend(renamed.get(value, value) for value in node.input)
    copy.output.extend(renamed.get(value, value) for value in node.output)
    copy.attribute.extend(node.attribute)
    return copy


def _value_info(
    values: Sequence[onnx.ValueInfoProto], name: str, renamed: str, dynamic: Sequence[str]
) -> onnx.ValueInfoProto:
    tensor = next(value for value in values if value.name == name).type.tensor_type
    fixed = [dimension.dim_value for dimension in tensor.shape.dim][len(dynamic) :]
    return helper.make_tensor_value_info(renamed, tensor.elem_type, [*dynamic, *fixed])
