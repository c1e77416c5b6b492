"""The states of recurrent layers in an exported graph: constants, zero, unless they are made inputs of it."""

from __future__ import annotations

from collections.abc import Sequence

NEXT = "_next"  # ends the name of the output that is the last state
# Fields of ONNX's messages: ModelProto.graph, GraphProto.input, ValueInfoProto.name and .type, TypeProto.tensor_type.
GRAPH, INPUT, NAME, TYPE, TENSOR = 7, 11, 1, 2, 1
FLOAT32 = b"\x08\x01"  # TypeProto.Tensor with elem_type 1


def names_of(outputs: Sequence[str]) -> list[str]:
    """Return the names of the states that a graph with these outputs has.

    >>> names_of(["hidden", "state_1_h_next"])
    ['state_1_h']
    """
    return [name.removesuffix(NEXT) for name in outputs if name.startswith("state_") and name.endswith(NEXT)]


def with_inputs(content: bytes, states: Sequence[str]) -> bytes:
    """Return the content of an ONNX file whose states may be fed; in the file they may not, as runtimes warn of it.

    What follows a protobuf message is merged into it, so a second one that holds the inputs alone is enough.
    """
    if not states:
        return content
    inputs = (_field(NAME, state.encode()) + _field(TYPE, _field(TENSOR, FLOAT32)) for state in states)
    return content + _field(GRAPH, b"".join(_field(INPUT, each) for each in inputs))


def _field(number: int, content: bytes) -> bytes:
    """Encode a field of bytes: its number and kind, its length in groups of seven bits, and the bytes."""
    length, size = bytearray(), len(content)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([number << 3 | 2, *length, size]) + content
