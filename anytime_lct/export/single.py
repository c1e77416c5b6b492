"""All exits in one ONNX file: nested If, and the thresholds as an input.

    input -> group 1 -> critic 1 -> confident? -- yes -> logits
                 |                      no
              hidden 1 ------------> group 2 -> critic 2 -> confident? -- yes -> logits
                                         |                      no
                                      hidden 2 ------------> group 3 -> logits

A batch ends at an exit where the largest probability of every sample reaches the exit's threshold; a threshold above 1
skips the exit, and its critic is not computed. Weights lie in the branch that needs them: outside, onnxruntime would
not prepare them for their kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.checker
from onnx import TensorProto, helper, numpy_helper

from anytime_lct import __version__
from anytime_lct.export.graphs import Sheet

NAME = "anytime.onnx"


def single_file(sheet: Sheet, served: Sequence[int]) -> onnx.ModelProto:
    """Return one graph: "input" and "thresholds" (E - 1,) to "logits" and "exit", the number of the exit that answered.

    E are the served exits, in rising order, at least two; the last answers whoever comes to it, and has no threshold.
    """
    groups = {i: sheet.group(i).graph for i in range(1, served[-1] + 1)}
    whole = sheet.complete and served[-1] == sheet.num_groups
    critics = {i: sheet.critic(i).graph for i in served if not (whole and i == served[-1])}
    body = _from_exit(0, served, groups, critics, "input")
    body.node("Identity", [body.logits], "logits")
    body.node("Identity", [body.exit], "exit")
    answer = onnx.ValueInfoProto()
    answer.CopyFrom((critics.get(served[-1]) or groups[served[-1]]).output[0])
    model = helper.make_model(
        helper.make_graph(
            body.nodes,
            "anytime",
            [groups[1].input[0], helper.make_tensor_value_info("thresholds", TensorProto.FLOAT, [len(served) - 1])],
            [answer, helper.make_tensor_value_info("exit", TensorProto.INT64, [])],
            body.weights,
        ),
        opset_imports=sheet.model.opset_import,
        functions=sheet.model.functions,
        ir_version=sheet.model.ir_version,
        producer_name="anytime-lct",
        producer_version=__version__,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


@dataclass
class _Body:
    """Nodes and weights of a graph in the making, and the values that hold its answer."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[TensorProto] = field(default_factory=list)
    logits: str = ""
    exit: str = ""

    def node(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output

    def constant(self, value: object, dtype: type, name: str) -> str:
        self.weights.append(numpy_helper.from_array(np.array(value, dtype), name))
        return name

    def part(self, graph: onnx.GraphProto, prefix: str, source: str) -> str:
        """Take a group or critic in, reading `source`, every other value under a name of its own; return its result."""
        names = {"": "", graph.input[0].name: source}

        def of(value: str) -> str:
            return names.get(value, f"{prefix}/{value}")

        for node in graph.node:
            made = onnx.NodeProto()
            made.CopyFrom(node)
            made.name = f"{prefix}/{node.name}"
            made.input[:], made.output[:] = map(of, node.input), map(of, node.output)
            self.nodes.append(made)
        for weight in graph.initializer:
            kept = TensorProto()
            kept.CopyFrom(weight)
            kept.name = of(weight.name)
            self.weights.append(kept)
        return of(graph.output[0].name)

    def branch(self, name: str, outputs: Mapping[str, int]) -> onnx.GraphProto:
        """Return it as a branch of an If; `outputs` are values and their element types."""
        described = [helper.make_tensor_value_info(value, kind, None) for value, kind in outputs.items()]
        return helper.make_graph(self.nodes, name, [], described, self.weights)


def _from_exit(
    at: int,
    served: Sequence[int],
    groups: Mapping[int, onnx.GraphProto],
    critics: Mapping[int, onnx.GraphProto],
    hidden: str,
) -> _Body:
    """Return the graph from behind the exit before served[at] to the end."""
    body, i = _Body(), served[at]
    for k in range(served[at - 1] + 1 if at else 1, i + 1):
        hidden = body.part(groups[k], f"group_{k}", hidden)
    if at == len(served) - 1:
        body.logits = body.part(critics[i], f"critic_{i}", hidden) if i in critics else hidden
        body.exit = body.node("Identity", [body.constant(i, np.int64, f"number_{i}")], f"last_{i}")
        return body
    place = body.constant(at, np.int64, f"place_{i}")
    threshold = body.node("Gather", ["thresholds", place], f"threshold_{i}", axis=0)
    possible = body.node("LessOrEqual", [threshold, body.constant(1.0, np.float32, f"one_{i}")], f"possible_{i}")
    asked, skipped = (
        _asked(i, critics[i], hidden, threshold),
        _skipped(i, len(critics[i].output[0].type.tensor_type.shape.dim)),
    )
    body.nodes.append(
        helper.make_node(
            "If", [possible], [f"logits_{i}", f"sure_{i}"], f"look_{i}", then_branch=asked, else_branch=skipped
        )
    )
    stop, on = _Body(), _from_exit(at + 1, served, groups, critics, hidden)
    stop.node("Identity", [f"logits_{i}"], f"given_{i}")
    stop.node("Identity", [stop.constant(i, np.int64, f"number_{i}")], f"exit_{i}")
    body.logits, body.exit = f"answer_{i}", f"answered_{i}"
    body.nodes.append(
        helper.make_node(
            "If",
            [f"sure_{i}"],
            [body.logits, body.exit],
            f"stop_{i}",
            then_branch=stop.branch(f"stop_at_{i}", {f"given_{i}": TensorProto.FLOAT, f"exit_{i}": TensorProto.INT64}),
            else_branch=on.branch(f"go_on_from_{i}", {on.logits: TensorProto.FLOAT, on.exit: TensorProto.INT64}),
        )
    )
    return body


def _asked(i: int, critic: onnx.GraphProto, hidden: str, threshold: str) -> onnx.GraphProto:
    """Critic i, and whether every sample's largest probability reaches the threshold."""
    body = _Body()
    logits = body.part(critic, f"critic_{i}", hidden)
    probabilities = body.node("Softmax", [logits], f"probabilities_{i}", axis=-1)
    last = body.constant([-1], np.int64, f"last_axis_{i}")
    largest = body.node("ReduceMax", [probabilities, last], f"largest_{i}", keepdims=0)
    least = body.node("ReduceMin", [largest], f"least_{i}", keepdims=0)
    confident = body.node("GreaterOrEqual", [least, threshold], f"confident_{i}")
    return body.branch(f"ask_{i}", {logits: TensorProto.FLOAT, confident: TensorProto.BOOL})


def _skipped(i: int, rank: int) -> onnx.GraphProto:
    """No logits, and go on."""
    body = _Body()
    nothing = body.node("Identity", [body.constant(np.zeros((1,) * rank), np.float32, f"none_{i}")], f"nothing_{i}")
    going = body.node("Identity", [body.constant(False, np.bool_, f"false_{i}")], f"going_{i}")
    return body.branch(f"skip_{i}", {nothing: TensorProto.FLOAT, going: TensorProto.BOOL})
