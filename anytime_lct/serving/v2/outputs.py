"""The outputs of an answer: tensors, in JSON or bytes, or the top classes of every sample with their names.

Classes are those of Triton's classification extension: strings "value:index:label", the largest value first; of a text,
those of its last character. A network of numbers has these as its output, and no classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from anytime_lct.exits.bundle import Manifest
from anytime_lct.runtime.answer import Answer
from anytime_lct.serving.request import Refusal, show
from anytime_lct.serving.v2.inputs import SHARED_MEMORY
from anytime_lct.serving.v2.json_text import read_boolean, read_object
from anytime_lct.serving.v2.tensors import TEXT, bytes_from_elements

OUTPUTS = {"logits": "FP32", "probabilities": "FP32", "exit": "INT64"}
OUTPUTS_OF_NUMBERS = {"numbers": "FP32", "exit": "INT64"}
OF_CLASSES = ("logits", "probabilities")
BINARY, IN_JSON = 4, 24  # bytes that a number takes at most while it is written
SOFTMAX = 24  # bytes that a probability takes while it is computed
CLASS = 160  # bytes that "value:index:" takes at most while it is written, and the string itself
ESCAPED = 6  # bytes that a character takes at most in JSON


@dataclass(frozen=True)
class Outputs:
    """The requested outputs of a network with class names `labels`.

    `binary` says of each whether it comes in bytes; `classes` how many top classes come instead of an output's values.
    """

    labels: tuple[str, ...]
    binary: dict[str, bool]
    classes: dict[str, int] = field(default_factory=dict[str, int])

    @property
    def has_text(self) -> bool:
        """Whether an output is written as text, which takes longer than its bytes."""
        return bool(self.classes) or not all(self.binary.values())

    def size(self, samples: int, num_logits: int) -> int:
        """Return the bytes that the outputs take at most while they are written."""
        total = 0
        for name in self.binary.keys() - {"exit"}:
            total += SOFTMAX * num_logits if name == "probabilities" else 0
            if count := self.classes.get(name):
                longest = max(map(len, self.labels))
                total += samples * min(count, len(self.labels)) * (CLASS + ESCAPED * longest)
            else:
                total += num_logits * (BINARY if self.binary[name] else IN_JSON)
        return total

    def write(self, answer: Answer) -> tuple[list[dict[str, Any]], list[bytes]]:
        """Return the description of every output of an answer, and the bytes of those that are binary, in order."""
        described: list[dict[str, Any]] = []
        raw: list[bytes] = []
        for name, is_binary in self.binary.items():
            array = _values(name, answer)
            if count := self.classes.get(name):
                shape, datatype, values = _top_classes(array, count, self.labels)
            else:
                shape, datatype, values = array.shape, "INT64" if name == "exit" else "FP32", array
            output: dict[str, Any] = {"name": name, "datatype": datatype, "shape": shape}
            if is_binary:
                raw.append(bytes_from_elements(values) if isinstance(values, list) else values.tobytes())
                output["parameters"] = {"binary_data_size": len(raw[-1])}
            else:
                output["data"] = values if isinstance(values, list) else values.ravel().tolist()
            described.append(output)
        return described, raw


def outputs_of(manifest: Manifest) -> dict[str, str]:
    """Return the outputs of a model with their datatypes."""
    return OUTPUTS_OF_NUMBERS if manifest.row.is_numbers else OUTPUTS


def read_outputs(raw: object, is_binary: bool, manifest: Manifest) -> Outputs:
    """Read the outputs that a request names, each binary or not, by default as `is_binary` says; raises Refusal.

    Where it names none, they are the exit, and the numbers or the logits.
    """
    labels, outputs = manifest.classes, outputs_of(manifest)
    if raw is None or raw == []:
        return Outputs(labels, dict.fromkeys((next(iter(outputs)), "exit"), is_binary))
    if not isinstance(raw, list):
        raise Refusal(f"Expected 'outputs' as a list, got {show(raw)}; fix it.")
    binary: dict[str, bool] = {}
    classes: dict[str, int] = {}
    for entry in cast("list[object]", raw):
        output = read_object(entry, "an output")
        name = output.get("name")
        if type(name) is not str or name not in outputs:
            raise Refusal(f"Expected an output of {', '.join(outputs)}, got {show(name)}; choose one of them.")
        if name in binary:
            raise Refusal(f"Expected every output once, got '{name}' again; leave it out.")
        parameters = read_object(output.get("parameters", {}), "an output's parameters")
        if unsupported := parameters.keys() & SHARED_MEMORY:
            raise Refusal(f"Expected an output's parameter 'binary_data', got {show(min(unsupported))}; leave it out.")
        binary[name] = read_boolean(parameters, "binary_data") if "binary_data" in parameters else is_binary
        if count := _read_count(parameters.get("classification", 0), name):
            classes[name] = count
    return Outputs(labels, binary, classes)


def _read_count(raw: object, name: str) -> int:
    if type(raw) is not int or raw < 0:
        raise Refusal(f"Expected 'classification' as the number of top classes, got {show(raw)}; fix it.")
    if raw and name not in OF_CLASSES:
        raise Refusal(f"Expected 'classification' of {' or '.join(OF_CLASSES)}, got it of '{name}'; leave it out.")
    return raw


def _values(name: str, answer: Answer) -> NDArray[Any]:
    if name == "exit":
        return np.asarray(answer.exits, "<i8")
    return np.asarray(answer.probabilities if name == "probabilities" else answer.logits, "<f4")


def _top_classes(
    values: NDArray[np.float32], count: int, labels: tuple[str, ...]
) -> tuple[tuple[int, int], str, list[str]]:
    last = values if values.ndim == 2 else values[:, -1]
    best = np.argsort(-last, axis=1, kind="stable")[:, :count]
    strings = [
        f"{value:f}:{index}:{labels[index]}"
        for row, indices in zip(last, best, strict=True)
        for value, index in zip(row[indices].tolist(), indices.tolist(), strict=True)
    ]
    return best.shape, TEXT, strings
