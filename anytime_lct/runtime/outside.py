"""Whether an ONNX graph keeps weights outside of its own file, read from its bytes: the runtime has no package onnx.

A file of weights has no checksum in the bundle's manifest, and may be any file of the machine. What onnxruntime accepts
there differs from version to version.
"""

from __future__ import annotations

# The messages of onnx.proto that lead to tensors: the fields of each, by number, that hold another message.
MESSAGES: dict[str, dict[int, str]] = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # fields of Tensor
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # how a field is written
MAX_VARINT = 10


def has_outside_data(content: bytes) -> bool:
    """Return whether the graph in a file of this content names other files; raises ValueError where it is no graph."""
    if not content:
        raise ValueError("the file is empty")
    pending = [("Model", 0, len(content))]
    while pending:
        message, position, end = pending.pop()
        while position < end:
            key, position = _varint(content, position)
            number, wire_type = key >> 3, key & 7
            value, start = 0, position
            if wire_type == VARINT:
                value, position = _varint(content, position)
            elif wire_type == BYTES:
                size, start = _varint(content, position)
                position = start + size
            elif wire_type in (FIXED32, FIXED64):
                position += 4 if wire_type == FIXED32 else 8
            else:
                raise ValueError("a field of an unknown kind")
            if position > end:
                raise ValueError("a field that ends behind its message")
            if message == "Tensor" and (number == EXTERNAL_DATA or (number == DATA_LOCATION and value)):
                return True
            if wire_type == BYTES and number in MESSAGES[message]:
                pending.append((MESSAGES[message][number], start, position))
    return False


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, and the position behind it."""
    value = 0
    for k in range(MAX_VARINT):
        if position >= len(content):
            break
        byte = content[position]
        position += 1
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            return value, position
    raise ValueError("a number without an end")
