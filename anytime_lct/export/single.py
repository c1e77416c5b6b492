"""All exits in one ONNX file: nested If nodes, with the thresholds as an input.

    input -> group 1 -> critic 1 -> confident? -- yes -> logits
                 |                      no
              hidden 1 ------------> group 2 -> critic 2 -> confident? -- yes -> logits
                                         |                      no
                                      hidden 2 ------------> group 3 -> logits

A batch stops at an exit where the largest probability of every sample (of a text: of its last step) reaches the exit's
threshold; logits are first divided by the exit's temperature. A threshold above 1 skips the exit without running its
critic. Weights are in the branch that needs them: outside of it, onnxruntime would not pack them for their kernels.
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


def single_file(sheet: Sheet, served: Sequence[int], temperatures: Sequence[float]) -> onnx.ModelProto:
    """Return one graph: "input" and "thresholds" (E - 1,) to "logits" and "exit", the index of the exit that answered.

    E is the number of served exits, in rising order and at least two. The last answers every batch that reaches it, and
    has no threshold. `temperatures` are those of exits 1..N.
    """
    groups = {i: sheet.group(i).graph for i in range(1, served[-1] + 1)}
    ends_network = sheet.complete and served[-1] == sheet.num_groups
    critics = {i: sheet.critic(i).graph for i in served if not (ends_network and i == served[-1])}
    body = _from_exit(0, served, groups, {i: (critic, temperatures[i - 1]) for i, critic in critics.items()}, "input")
    body.node("Identity", [body.logits], "logits")
    body.node("Identity", [body.exit], "exit")
    logits = onnx.ValueInfoProto()
    logits.CopyFrom((critics.get(served[-1]) or groups[served[-1]]).output[0])
    model = helper.make_model(
        helper.make_graph(
            body.nodes,
            "anytime",
            [groups[1].input[0], helper.make_tensor_value_info("thresholds", TensorProto.FLOAT, [len(served) - 1])],
            [logits, helper.make_tensor_value_info("exit", TensorProto.INT64, [])],
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
    """The nodes and weights of a graph that is being built, and the values that hold its answer."""

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
        """Copy a group or critic into the graph, reading `source` and with prefixed names; return its output's name."""
        names = {"": "", graph.input[0].name: source}

        def prefixed(value: str) -> str:
            return names.get(value, f"{prefix}/{value}")

        for node in graph.node:
            node_copy = onnx.NodeProto()
            node_copy.CopyFrom(node)
            node_copy.name = node.name and f"{prefix}/{node.name}"  # onnxruntime leaves nodes that it splits unnamed
            node_copy.input[:], node_copy.output[:] = map(prefixed, node.input), map(prefixed, node.output)
            self.nodes.append(node_copy)
        for weight in graph.initializer:
            weight_copy = TensorProto()
            weight_copy.CopyFrom(weight)
            weight_copy.name = prefixed(weight.name)
            self.weights.append(weight_copy)
        return prefixed(graph.output[0].name)

    def branch(self, name: str, outputs: Mapping[str, int]) -> onnx.GraphProto:
        """Return the graph as a branch of an If; `outputs` are names of values with their element types."""
        infos = [helper.make_tensor_value_info(value, kind, None) for value, kind in outputs.items()]
        return helper.make_graph(self.nodes, name, [], infos, self.weights)


def _from_exit(
    k: int,
    served: Sequence[int],
    groups: Mapping[int, onnx.GraphProto],
    critics: Mapping[int, tuple[onnx.GraphProto, float]],
    hidden: str,
) -> _Body:
    """Return the graph from behind exit served[k - 1], or from the input, to the end of the network."""
    body, i = _Body(), served[k]
    for j in range(served[k - 1] + 1 if k else 1, i + 1):
        hidden = body.part(groups[j], f"group_{j}", hidden)
    if k == len(served) - 1:
        body.logits = body.part(critics[i][0], f"critic_{i}", hidden) if i in critics else hidden
        body.exit = body.node("Identity", [body.constant(i, np.int64, f"number_{i}")], f"last_{i}")
        return body
    index = body.constant(k, np.int64, f"index_{i}")
    threshold = body.node("Gather", ["thresholds", index], f"threshold_{i}", axis=0)
    possible = body.node("LessOrEqual", [threshold, body.constant(1.0, np.float32, f"one_{i}")], f"possible_{i}")
    critic, temperature = critics[i]
    rank = len(critic.output[0].type.tensor_type.shape.dim)
    body.nodes.append(
        helper.make_node(
            "If",
            [possible],
            [f"logits_{i}", f"sure_{i}"],
            f"look_{i}",
            then_branch=_critic_branch(i, critic, temperature, hidden, threshold),
            else_branch=_skip_branch(i, rank),
        )
    )
    stop, deeper = _Body(), _from_exit(k + 1, served, groups, critics, hidden)
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
            else_branch=deeper.branch(
                f"go_on_from_{i}", {deeper.logits: TensorProto.FLOAT, deeper.exit: TensorProto.INT64}
            ),
        )
    )
    return body


def _critic_branch(i: int, critic: onnx.GraphProto, temperature: float, hidden: str, threshold: str) -> onnx.GraphProto:
    """Return the branch that runs critic i: its logits, and whether every sample reaches the threshold."""
    body = _Body()
    logits = body.part(critic, f"critic_{i}", hidden)
    last = logits
    if len(critic.output[0].type.tensor_type.shape.dim) == 3:
        last = body.node("Gather", [logits, body.constant(-1, np.int64, f"last_step_{i}")], f"latest_{i}", axis=1)
    calibrated = body.node("Div", [last, body.constant(temperature, np.float32, f"temperature_{i}")], f"softer_{i}")
    probabilities = body.node("Softmax", [calibrated], f"probabilities_{i}", axis=-1)
    axis = body.constant([-1], np.int64, f"last_axis_{i}")
    largest = body.node("ReduceMax", [probabilities, axis], f"largest_{i}", keepdims=0)
    least = body.node("ReduceMin", [largest], f"least_{i}", keepdims=0)
    confident = body.node("GreaterOrEqual", [least, threshold], f"confident_{i}")
    return body.branch(f"ask_{i}", {logits: TensorProto.FLOAT, confident: TensorProto.BOOL})


def _skip_branch(i: int, rank: int) -> onnx.GraphProto:
    """Return the branch that skips critic i: logits of zeros, and False."""
    body = _Body()
    zeros = body.node("Identity", [body.constant(np.zeros((1,) * rank), np.float32, f"none_{i}")], f"nothing_{i}")
    confident = body.node("Identity", [body.constant(False, np.bool_, f"false_{i}")], f"going_{i}")
    return body.branch(f"skip_{i}", {zeros: TensorProto.FLOAT, confident: TensorProto.BOOL})
