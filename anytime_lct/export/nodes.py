"""Changes to the nodes of an exported graph: shapes and states of sequences, norms, an input that several read."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
from onnx import helper, numpy_helper

# Of recurrent layers, the inputs that hold the state to begin from, and its letter.
STATES = {"LSTM": {5: "h", 6: "c"}, "GRU": {5: "h"}, "RNN": {5: "h"}}


def forget_shapes(graph: onnx_ir.Graph) -> None:
    """Remove the recorded shapes behind recurrent layers, which hold the example's number of steps as a constant.

    The optimizer infers them anew, and else would reshape every sequence to that length.
    """
    behind = set[onnx_ir.Value]()
    for node in graph:
        if node.op_type in ("LSTM", "GRU", "RNN") or not behind.isdisjoint(node.inputs):
            behind.update(node.outputs)
    for value in behind.difference(graph.outputs):
        value.shape = None


def read_input_once(graph: onnx.GraphProto) -> None:
    """Let a feature map that several nodes read (a convolution and the sum around it) enter through a 1x1 max pooling.

    onnxruntime stores maps in blocks of channels from the first convolution or pooling on, and fuses a sum into the
    convolution before it only where both terms are in blocks. An input of the graph is not: without the pooling no sum
    of the group is fused, each needs two conversions (ResNet-50: 4% of a group's time), and rounding differs from the
    whole exit. Where only convolutions read the map, they share one conversion anyway.
    """
    readers = [node for node in graph.node if "input" in node.input]
    only_convolutions = all(node.op_type == "Conv" for node in readers)
    if len(readers) < 2 or only_convolutions or len(graph.input[0].type.tensor_type.shape.dim) != 4:
        return
    for node in readers:
        for index, value in enumerate(node.input):
            if value == "input":
                node.input[index] = "input_once"
    graph.node.insert(0, helper.make_node("MaxPool", ["input"], ["input_once"], "enter_once", kernel_shape=[1, 1]))


def expose_states(graph: onnx.GraphProto) -> None:
    """Let recurrent layers begin from a state that is a constant of its own, zero, and return their last one.

    The k-th layer has the constant state_k_h, (1, 1, units), and the output state_k_h_next, (directions, batch, units);
    an LSTM has state_k_c too. The runtime makes the constants inputs.
    """
    nodes, count = list(graph.node), 0
    del graph.node[:]
    for node in nodes:
        states = STATES.get(node.op_type, {})
        has_states = all(position < len(node.input) and node.input[position] for position in states)
        is_last_unused = not any(node.output[1:])
        if states and has_states and is_last_unused:
            count += 1
            for position, letter in states.items():
                _expose_state(graph, node, position, f"state_{count}_{letter}")
        graph.node.append(node)


def _expose_state(graph: onnx.GraphProto, node: onnx.NodeProto, position: int, state: str) -> None:
    """Add the constant `state` to an input of a recurrent node, and return the last state of this kind."""
    units = next(attribute.i for attribute in node.attribute if attribute.name == "hidden_size")
    graph.initializer.append(numpy_helper.from_array(np.zeros((1, 1, units), np.float32), state))
    graph.node.append(helper.make_node("Add", [node.input[position], state], [f"{state}_first"], f"{state}_first"))
    node.input[position] = f"{state}_first"
    last = position - 4  # behind the output of every step
    node.output.extend([""] * (last + 1 - len(node.output)))
    node.output[last] = f"{state}_next"
    shape = [None, "batch", units]
    graph.output.append(helper.make_tensor_value_info(f"{state}_next", onnx.TensorProto.FLOAT, shape))


def unfold_norms(graph: onnx.GraphProto) -> None:
    """Write batch norms that follow no convolution as x * factor + shift, where their statistics are weights."""
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.input)}
    nodes = list(graph.node)
    del graph.node[:]
    for node in nodes:
        if node.op_type != "BatchNormalization" or not weights.keys() >= set(node.input[1:]):
            graph.node.append(node)
            continue
        x, *names = node.input
        scale, bias, mean, variance = (weights[name].astype(np.float64) for name in names)
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(variance + epsilon)
        shape = (-1, *(1,) * (ranks[x] - 2))
        y = node.output[0]
        for value, suffix in ((factor, "factor"), (bias - mean * factor, "shift")):
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32).reshape(shape), f"{y}_{suffix}"))
        graph.node.append(helper.make_node("Mul", [x, f"{y}_factor"], [f"{y}_product"], name=f"{node.name}_factor"))
        graph.node.append(helper.make_node("Add", [f"{y}_product", f"{y}_shift"], [y], name=f"{node.name}_shift"))
