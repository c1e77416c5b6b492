"""The Open Inference Protocol V2 in bytes: reads and checks a request, writes an answer; no sockets.

A body is JSON alone, or JSON followed by the bytes of tensors in the order in which the JSON lists them. The header
Inference-Header-Content-Length is the length of the JSON, `binary_data_size` that of each tensor. Where it is 0, the
body is the input, as FP32, INT64 or an image file, and the answer is binary. Fields that are not known are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from anytime_lct import __version__
from anytime_lct.exits.budget import Ask
from anytime_lct.exits.bundle import Manifest
from anytime_lct.serving.limits import Limits, too_large
from anytime_lct.serving.request import Refusal, Reply, show
from anytime_lct.serving.v2.inputs import (
    INPUT,
    describe_raw,
    find_input,
    max_images,
    read_elements,
    read_input,
    resizing_bytes,
)
from anytime_lct.serving.v2.json_text import read_boolean, read_json, read_object, write_json
from anytime_lct.serving.v2.outputs import Outputs, outputs_of, read_outputs
from anytime_lct.serving.v2.parameters import read_ask, reply_parameters
from anytime_lct.serving.v2.pictures import decode, decoding_size, read_files, takes_pictures
from anytime_lct.serving.v2.tensors import TEXT

HEADER_LENGTH = b"inference-header-content-length"
EXTENSIONS = ["binary_tensor_data", "classification", "model_repository", "statistics"]
MAX_ID = 1000


class InferRequest(NamedTuple):
    """A request; `read_input` returns its input as the network takes it, of about `input_bytes`, and takes
    `resizing_bytes` meanwhile.

    Where the input is image files, `decoding_size` returns the bytes that decoding takes. Both raise Refusal and
    InputError.
    """

    id: str | None
    outputs: Outputs
    ask: Ask
    input_bytes: int
    read_input: Callable[[], NDArray[Any]]
    resizing_bytes: int = 0
    decoding_size: Callable[[], int] | None = None


def read_request(
    body: bytes | bytearray, header_length: bytes | None, manifest: Manifest, limits: Limits, default: Ask
) -> InferRequest:
    """Read a request's body; `header_length` is the header of that name. Raises Refusal.

    >>> body = b'{"inputs": [{"name": "input", "datatype": "INT64", "shape": [1, 2], "data": [0, 1]}]}'
    >>> read_request(body, None, session.manifest, Limits(), Ask()).read_input()  # doctest: +SKIP
    array([[0, 1]])
    """
    length = json_length(header_length, len(body))
    if length > limits.json:
        raise too_large(limits.json)
    binary, is_raw = memoryview(body)[length:], header_length is not None and length == 0
    if is_raw:
        request = {"inputs": [describe_raw(binary, manifest)], "parameters": {"binary_data_output": True}}
    else:
        request = read_object(read_json(bytes(memoryview(body)[:length])), "a request")
    identity = request.get("id")
    if identity is not None and (type(identity) is not str or len(identity) > MAX_ID):
        raise Refusal(f"Expected 'id' as a text of up to {MAX_ID} characters, got {show(identity)}; shorten it.")
    parameters = read_object(request.get("parameters", {}), "'parameters'")
    tensor, shape, size = find_input(request.get("inputs"), manifest, limits)
    is_binary = read_boolean(parameters, "binary_data_output")
    outputs = read_outputs(request.get("outputs"), is_binary, manifest)
    ask = read_ask(parameters, default)
    if tensor.get("datatype") == TEXT and takes_pictures(manifest):
        files = read_files([binary] if is_raw else read_elements(tensor, shape, binary))
        sized = partial(decoding_size, files, size, limits)
        return InferRequest(identity, outputs, ask, size, partial(decode, files, manifest), 0, sized)
    reading = partial(read_input, tensor, shape, binary, manifest, limits)
    return InferRequest(identity, outputs, ask, size, reading, resizing_bytes(tensor, shape, size, manifest))


def write_reply(
    request: InferRequest, model: str, version: str, reply: Reply, seconds: float
) -> tuple[bytes, int | None]:
    """Return the body of an answer, `seconds` after its request arrived, and the length of its JSON if bytes follow.

    Raises Refusal where the logits are not finite, which happens only for absurdly large inputs.
    """
    answer = reply.answer
    if not math.isfinite(answer.logits.sum(dtype=np.float64)):
        raise Refusal("Expected an input that leads to finite logits, got infinity or NaN; scale it as in training.")
    outputs, raw = request.outputs.write(answer)
    names: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        names["id"] = request.id
    head = write_json({**names, "parameters": reply_parameters(reply, request.ask, seconds), "outputs": outputs})
    return (b"".join([head, *raw]), len(head)) if raw else (head, None)


def describe_server(*, has_admin: bool) -> dict[str, Any]:
    """Return the server's metadata, the answer of `/v2`; without administration it loads and unloads no models."""
    extensions = [each for each in EXTENSIONS if has_admin or each != "model_repository"]
    return {"name": "anytime-lct", "version": __version__, "extensions": extensions}


def describe_model(name: str, versions: list[str], manifest: Manifest) -> dict[str, Any]:
    """Return a model's metadata: its input as the network takes it, its outputs, and the names of its classes."""
    shape = [size if isinstance(size, int) else -1 for size in manifest.input_shape]
    batch = shape[: 2 if manifest.row.is_text else 1]
    return {
        "name": name,
        "versions": versions,
        "platform": "anytime-lct_onnxruntime",
        "inputs": [
            {"name": INPUT, "datatype": "FP32" if manifest.input_dtype == "float32" else "INT64", "shape": shape}
        ],
        "outputs": [
            {"name": name, "datatype": kind, "shape": batch[:1] if name == "exit" else [*batch, manifest.outputs]}
            for name, kind in outputs_of(manifest).items()
        ],
        "parameters": {"classes": manifest.classes},
    }


def describe_config(name: str, manifest: Manifest, limits: Limits) -> dict[str, Any]:
    """Return a model's configuration in the form of Triton's: the sizes of a request that is answered."""
    metadata = describe_model(name, [], manifest)

    def tensors(kind: str) -> list[dict[str, Any]]:
        rows = []
        for each in metadata[kind]:
            row = {"name": each["name"], "data_type": f"TYPE_{each['datatype']}", "dims": each["shape"][1:]}
            # Triton writes one number a sample as a size of 1 that is dropped.
            rows.append(row if row["dims"] else row | {"dims": [1], "reshape": {"shape": []}})
        return rows

    return {
        "name": name,
        "platform": metadata["platform"],
        "max_batch_size": limits.characters if manifest.row.is_text else max_images(manifest, limits),
        "input": tensors("inputs"),
        "output": tensors("outputs"),
    }


def json_length(header: bytes | None, size: int) -> int:
    """Return the length of the JSON in a body of `size` bytes; raises Refusal for a header that is no such length."""
    if header is None:
        return size
    if not header.isdigit() or len(header) > 12 or int(header) > size:
        raise Refusal(
            f"Expected Inference-Header-Content-Length up to the body's {size} bytes, got "
            f"{show(header.decode('latin-1'))}; give the length of the JSON."
        )
    return int(header)
