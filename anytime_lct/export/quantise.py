"""int8: the sheet of groups and critics, quantised once with scales from calibration inputs, before parts are cut out.

Weights become int8 with a scale per channel, activations uint8 with a scale per tensor, written as pairs of
QuantizeLinear and DequantizeLinear around float32 nodes (QDQ), which onnxruntime and others turn into integer
arithmetic. A hidden tensor is float32 where it leaves a group, on a grid of 256 values:

    group_1 .. Conv -> [Q -> DQ] -> hidden_1 (float32) -> [Q -> DQ] -> Conv ..     group_2, critic_1

Both pairs have the same scale, so that the second changes nothing, and the chain of groups equals the whole exit to the
bit. The last product of every exit stays in float32 (logits on a grid of 256 values would tie), and so do norms that
follow no convolution (their factors differ too much between channels for one scale).
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime import set_default_logger_severity  # type: ignore[attr-defined]
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quant_pre_process, quantize_static
from torch import nn

from anytime_lct.errors import ExportError
from anytime_lct.evaluation import Predictor
from anytime_lct.exits.profile import Profile
from anytime_lct.exits.thresholds import ThresholdTable
from anytime_lct.export.graphs import Sheet
from anytime_lct.task import Facts


@dataclass(frozen=True)
class Int8:
    """What an int8 bundle needs: inputs for calibration, and a function that measures the quantised graphs.

    `inputs` yields batches of network inputs, float32 (B, ..). `measure` gets a function that returns the logits
    of the served exits, in order, and returns the profile and the rules for stopping of these graphs.
    """

    inputs: Iterable[NDArray]
    measure: Callable[[Predictor, tuple[int, ...]], tuple[Profile, ThresholdTable | None]]


def check(facts: Facts) -> None:
    """Raise ExportError for a network that cannot be quantised here: one on text."""
    if facts.tokens:
        reader = "a language model" if facts.row.is_text else "one on tokens"
        raise ExportError(
            f"Expected a network on images or floats for int8, got {reader}, whose embedding and recurrent layers have "
            f"no int8 form here; export it without --int8."
        )


def quantise(sheet: Sheet, groups: Sequence[nn.Module], inputs: Iterable[NDArray]) -> Sheet:
    """Return the sheet in int8, with scales from the smallest and largest value of every tensor on `inputs`.

    `groups` are the layer groups that the sheet was exported from. Weights have 7 bits: processors without VNNI add two
    products in 16 bits, which 8-bit weights would overflow. Raises ExportError.

    >>> quantise(sheet, network.groups, [x.numpy() for x, _ in batches]).exit(1)  # doctest: +SKIP
    """
    feeds = _Feeds(sheet, groups, inputs)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared_path, quantised_path = Path(folder) / "prepared.onnx", Path(folder) / "quantised.onnx"
        try:
            quant_pre_process(sheet.model, prepared_path)
            prepared = onnx.load(prepared_path)
            _separate_names(prepared.graph)
            onnx.save(prepared, prepared_path)
            quantize_static(
                prepared_path,
                quantised_path,
                feeds,
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                nodes_to_exclude=_float_nodes(sheet, prepared.graph),
            )
        except Exception as error:  # onnxruntime's exceptions share no base class
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise ExportError(
                f"The network cannot be quantised to int8: {lines[0]}; export it without --int8."
            ) from error
        model = onnx.load(quantised_path)
    domains = {node.domain for node in model.graph.node}
    foreign = [entry for entry in model.opset_import if entry.domain not in domains]
    for entry in foreign:
        model.opset_import.remove(entry)
    for i in range(1, sheet.num_groups + 1):
        share_scale(model.graph, f"group_{i}", f"hidden_{i}")
    return replace(sheet, model=model)


class _Feeds(CalibrationDataReader):
    """Runs calibration inputs through the groups, so that every part of the sheet gets its real inputs."""

    def __init__(self, sheet: Sheet, groups: Sequence[nn.Module], inputs: Iterable[NDArray]) -> None:
        names = {value.name for value in sheet.model.graph.input}
        self._batches = self._run(groups, inputs, names)

    def get_next(self) -> dict[str, NDArray] | None:  # type: ignore[override]
        return next(self._batches, None)

    @staticmethod
    def _run(groups: Sequence[nn.Module], inputs: Iterable[NDArray], names: set[str]) -> Iterator[dict[str, NDArray]]:
        for x in inputs:
            feed, hidden = {"input": x}, torch.from_numpy(x)
            with torch.no_grad():
                for i, group in enumerate(groups, start=1):
                    if f"hidden_{i}" in names:
                        hidden = group(hidden)
                        feed[f"hidden_{i}"] = hidden.numpy()
            yield feed


def _separate_names(graph: onnx.GraphProto) -> None:
    """Rename weights that are named after another value, such as `gain` and `gain_scale`: so are the quantiser's own.

    Those are `gain_scale`, `gain_zero_point` and the like; none of them ends in a colon.
    """
    names = {tensor.name for tensor in graph.initializer} | {value for node in graph.node for value in node.output}
    renamed = {
        tensor.name: f"{tensor.name}:"
        for tensor in graph.initializer
        if any(tensor.name[:k] in names for k, letter in enumerate(tensor.name) if letter == "_")
    }
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in graph.node:
        node.input[:] = [renamed.get(value, value) for value in node.input]


def _float_nodes(sheet: Sheet, graph: onnx.GraphProto) -> list[str]:
    """Name the nodes that make logits, with the product before a bias, and the sums and products with weights."""
    weights = {tensor.name for tensor in graph.initializer}
    makers = {value: node for node in graph.node for value in node.output}
    last = f"group_{sheet.num_groups}" if sheet.complete else None
    names = {node.name for node in graph.node if node.op_type in ("Add", "Mul") and weights & set(node.input)}
    for value in graph.output:
        if value.name == last or value.name.startswith("critic_"):
            node = makers[value.name]
            names.add(node.name)
            if node.op_type == "Add":
                names |= {makers[term].name for term in node.input if term in makers}
    return sorted(names)


def share_scale(graph: onnx.GraphProto, source: str, target: str) -> None:
    """Give the pair before a hidden tensor the scale of the pair behind it, which differs by rounding."""
    before = next((node for node in graph.node if source in node.output), None)
    behind = next((node for node in graph.node if target in node.input), None)
    if before is None or behind is None or (before.op_type, behind.op_type) != ("DequantizeLinear", "QuantizeLinear"):
        return
    weights = {tensor.name: tensor for tensor in graph.initializer}
    for own, other in zip(before.input[1:], behind.input[1:], strict=True):
        weights[own].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weights[other]), own))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the logs and warnings of onnxruntime's quantisation, and of the threads that its sessions try to pin."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    set_default_logger_severity(4)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        set_default_logger_severity(2)
        logging.disable(level)
