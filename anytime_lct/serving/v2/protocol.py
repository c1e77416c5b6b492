"""The Open Inference Protocol V2 in bytes: reads and checks a request, writes an answer; no sockets.

A body is JSON alone, or JSON followed by the bytes of tensors in the order in which the JSON lists them. The header
Inference-Header-Content-Length is the length of the JSON, `binary_data_size` that of each tensor.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, cast

import numpy as np
from numpy.typing import NDArray

from anytime_lct import __version__
from anytime_lct.errors import InputError
from anytime_lct.exits.budget import Ask
from anytime_lct.exits.bundle import Manifest
from anytime_lct.runtime import preprocess
from anytime_lct.serving.limits import Limits, too_large
from anytime_lct.serving.request import Refusal, Reply, show
from anytime_lct.serving.v2 import tensors
from anytime_lct.serving.v2.parameters import read_ask, reply_parameters

INPUT = "input"
OUTPUTS = {"logits": "FP32", "exit": "INT64"}
HEADER_LENGTH = b"inference-header-content-length"
EXTENSIONS = ["binary_tensor_data", "model_repository", "statistics"]
MAX_ID = 1000


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A request; `read_input` returns its input as the network takes it, of about `input_bytes`.

    `outputs` says of each requested output whether it is binary. `read_input` raises Refusal and InputError.
    """

    id: str | None
    outputs: dict[str, bool]
    ask: Ask
    input_bytes: int
    read_input: Callable[[], NDArray[Any]]


def read_request(
    body: bytes, header_length: bytes | None, manifest: Manifest, limits: Limits, default: Ask
) -> InferRequest:
    """Read a request's body; `header_length` is the header of that name. Raises Refusal.

    >>> body = b'{"inputs": [{"name": "input", "datatype": "INT64", "shape": [1, 2], "data": [0, 1]}]}'
    >>> read_request(body, None, session.manifest, Limits(), Ask()).read_input()  # doctest: +SKIP
    array([[0, 1]])
    """
    length = _length(header_length, len(body))
    if length > limits.json:
        raise too_large(limits.json)
    request = _object(_read_json(body[:length]), "a request", {"id", "inputs", "outputs", "parameters"})
    identity = request.get("id")
    if identity is not None and (type(identity) is not str or len(identity) > MAX_ID):
        raise Refusal(f"Expected 'id' as a text of up to {MAX_ID} characters, got {show(identity)}; shorten it.")
    parameters = _object(request.get("parameters", {}), "'parameters'")
    tensor, shape, size = _find_input(request.get("inputs"), manifest, limits)
    return InferRequest(
        identity,
        _read_outputs(request.get("outputs"), _boolean(parameters, "binary_data_output")),
        read_ask(parameters, default),
        size,
        partial(_read_input, tensor, shape, memoryview(body)[length:], manifest, limits),
    )


def write_reply(
    request: InferRequest, model: str, version: str, reply: Reply, seconds: float
) -> tuple[bytes, int | None]:
    """Return the body of an answer, `seconds` after its request arrived, and the length of its JSON if bytes follow.

    Raises Refusal where the logits are not finite, which happens only for absurdly large inputs.
    """
    answer = reply.answer
    if not math.isfinite(answer.logits.sum(dtype=np.float64)):
        raise Refusal("Expected an input that leads to finite logits, got infinity or NaN; scale it as in training.")
    arrays = {"logits": np.asarray(answer.logits, "<f4"), "exit": np.asarray(answer.exits, "<i8")}
    outputs: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, binary in request.outputs.items():
        array = arrays[name]
        output: dict[str, Any] = {"name": name, "datatype": OUTPUTS[name], "shape": array.shape}
        if binary:
            raw.append(array.tobytes())
            output["parameters"] = {"binary_data_size": array.nbytes}
        else:
            output["data"] = array.ravel().tolist()
        outputs.append(output)
    names: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        names["id"] = request.id
    head = write_json({**names, "parameters": reply_parameters(reply, request.ask, seconds), "outputs": outputs})
    return (b"".join([head, *raw]), len(head)) if raw else (head, None)


def describe_server() -> dict[str, Any]:
    """Return the server's metadata, the answer of `/v2`."""
    return {"name": "anytime-lct", "version": __version__, "extensions": EXTENSIONS}


def describe_model(name: str, versions: list[str], manifest: Manifest) -> dict[str, Any]:
    """Return a model's metadata: its input as the network takes it, and its outputs."""
    shape = [size if isinstance(size, int) else -1 for size in manifest.input_shape]
    batch = shape[: 1 if manifest.task == "classification" else 2]
    return {
        "name": name,
        "versions": versions,
        "platform": "anytime-lct_onnxruntime",
        "inputs": [
            {"name": INPUT, "datatype": "FP32" if manifest.input_dtype == "float32" else "INT64", "shape": shape}
        ],
        "outputs": [
            {"name": "logits", "datatype": "FP32", "shape": [*batch, manifest.outputs]},
            {"name": "exit", "datatype": "INT64", "shape": batch[:1]},
        ],
    }


def write_json(value: object) -> bytes:
    """Return a value as compact JSON in ASCII."""
    return _ENCODER.encode(value).encode("ascii")


def _length(header: bytes | None, size: int) -> int:
    if header is None:
        return size
    if not header.isdigit() or len(header) > 12 or int(header) > size:
        raise Refusal(
            f"Expected Inference-Header-Content-Length up to the body's {size} bytes, got "
            f"{show(header.decode('latin-1'))}; give the length of the JSON."
        )
    return int(header)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


# Made once: making one takes longer than writing a small answer.
_ENCODER = json.JSONEncoder(separators=(",", ":"))
_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def _read_json(raw: bytes) -> object:
    try:
        return _DECODER.decode(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        reason = "too deeply nested" if isinstance(error, RecursionError) else str(error)[:120]
        raise Refusal(f"Expected a request in JSON, got something else ({reason}); fix it.") from None


def _object(raw: object, what: str, known: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(raw, dict):
        raise Refusal(f"Expected {what} as a JSON object, got {show(raw)}; fix it.")
    entries = cast("dict[str, Any]", raw)
    if known is not None and (unknown := entries.keys() - known):
        raise Refusal(f"Expected {what} of {', '.join(sorted(known))}, got {show(min(unknown))}; leave it out.")
    return entries


def _boolean(parameters: dict[str, Any], key: str) -> bool:
    value = parameters.get(key, False)
    if type(value) is not bool:
        raise Refusal(f"Expected '{key}' as true or false, got {show(value)}; fix it.")
    return value


def _find_input(raw: object, manifest: Manifest, limits: Limits) -> tuple[dict[str, Any], tuple[int, ...], int]:
    """Return the description of the input tensor, its shape, and the bytes of the network's input."""
    if not isinstance(raw, list) or not raw:
        raise Refusal(f"Expected 'inputs' as a list of one tensor named '{INPUT}', got {show(raw)}; send one.")
    tensor: dict[str, Any] = {}
    for entry in cast("list[object]", raw):
        tensor = _object(entry, "an input", {"name", "datatype", "shape", "data", "parameters"})
        if tensor.get("name") != INPUT:
            raise Refusal(f"Expected an input named '{INPUT}', got {show(tensor.get('name'))}; rename it.")
    if len(raw) > 1:
        raise Refusal(f"Expected the input '{INPUT}' once, got it {len(raw)} times; send one batch.")
    shape = tensors.read_shape(tensor.get("shape"))
    if manifest.task == "language-model":
        count, limit, bytes_each = math.prod(shape), limits.characters, 8
    else:
        bytes_each = 4 * math.prod(size for size in manifest.input_shape if isinstance(size, int))
        # Images are resized to the network's size: no more of them than fit into a body at that size.
        count, limit = shape[0], min(limits.images, max(1, limits.body // bytes_each))
    if count > limit:
        unit = "images" if manifest.task == "classification" else "characters"
        raise Refusal(f"Expected at most {limit} {unit} in a request, got {count}; send several requests.")
    return tensor, shape, count * bytes_each


def _read_input(
    tensor: dict[str, Any], shape: tuple[int, ...], binary: memoryview, manifest: Manifest, limits: Limits
) -> NDArray[Any]:
    return preprocess.check_batch(_read_tensor(tensor, shape, binary, manifest, limits), manifest)


def _read_tensor(
    tensor: dict[str, Any], shape: tuple[int, ...], binary: memoryview, manifest: Manifest, limits: Limits
) -> NDArray[Any]:
    """Read the input, and convert pixels, text and half-precision numbers to what the network takes."""
    datatype: Any = tensor.get("datatype")
    is_text = manifest.input_dtype == "int64"
    datatypes = ("INT64", "INT32", tensors.TEXT) if is_text else ("FP32", "FP64", "FP16", "UINT8")
    if datatype not in datatypes:
        raise Refusal(f"Expected the datatype {', '.join(datatypes)}, got {show(datatype)}; convert the input.")
    data = _data(tensor, binary)
    if datatype == tensors.TEXT:
        if len(shape) != 1:
            raise Refusal(f"Expected BYTES of shape [batch], one text each, got {list(shape)}; fix the shape.")
        read = tensors.texts_from_bytes if isinstance(data, memoryview) else tensors.texts_from_list
        return _encode(read(shape, data), manifest, limits)  # type: ignore[arg-type]
    array = (
        tensors.from_bytes(datatype, shape, data)
        if isinstance(data, memoryview)
        else tensors.from_list(datatype, shape, data)
    )
    if datatype == "FP16":
        return array.astype(np.float32)
    if datatype == "UINT8":
        if array.ndim != 4:
            raise Refusal(
                f"Expected pixels of shape [batch, height, width, channels], got {list(shape)}; reshape them."
            )
        try:
            return preprocess.from_array(array, manifest.preprocessing)
        except (MemoryError, OverflowError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise Refusal(f"Expected pixels that can be resized, got {list(shape)}; send smaller images.") from None
    return array


def _data(tensor: dict[str, Any], binary: memoryview) -> object:
    parameters = _object(tensor.get("parameters", {}), "an input's parameters")
    if unknown := parameters.keys() - {"binary_data_size", "content_type"}:
        raise Refusal(f"Expected an input's parameter 'binary_data_size', got {show(min(unknown))}; leave it out.")
    if "binary_data_size" not in parameters:
        if len(binary):
            raise Refusal(f"Expected no bytes behind the JSON, got {len(binary)}; give 'binary_data_size'.")
        if "data" not in tensor:
            raise Refusal("Expected 'data' or 'binary_data_size' of the input, got neither; send one.")
        return tensor["data"]
    size = parameters["binary_data_size"]
    if "data" in tensor:
        raise Refusal("Expected one of 'data' and 'binary_data_size', got both; leave one out.")
    if type(size) is not int or size != len(binary):
        raise Refusal(
            f"Expected 'binary_data_size' {len(binary)}, as many as follow the JSON, got {show(size)}; fix it."
        )
    return binary


def _encode(texts: list[str], manifest: Manifest, limits: Limits) -> NDArray[np.int64]:
    lengths = {len(text) for text in texts}
    if len(lengths) > 1:
        raise Refusal(f"Expected texts of one length in a batch, got {len(lengths)} lengths; send them one by one.")
    if sum(map(len, texts)) > limits.characters:
        raise Refusal(f"Expected at most {limits.characters} characters in a request, got more; shorten the text.")
    if not texts:
        raise Refusal("Expected at least one text, got none; send some.")
    return np.concatenate([preprocess.from_text(text, manifest.preprocessing) for text in texts])


def _read_outputs(raw: object, binary: bool) -> dict[str, bool]:
    if raw is None or raw == []:
        return dict.fromkeys(OUTPUTS, binary)
    if not isinstance(raw, list):
        raise Refusal(f"Expected 'outputs' as a list, got {show(raw)}; fix it.")
    outputs: dict[str, bool] = {}
    for entry in cast("list[object]", raw):
        output = _object(entry, "an output", {"name", "parameters"})
        name = output.get("name")
        if type(name) is not str or name not in OUTPUTS:
            raise Refusal(f"Expected an output of {', '.join(OUTPUTS)}, got {show(name)}; choose one of them.")
        if name in outputs:
            raise Refusal(f"Expected every output once, got '{name}' again; leave it out.")
        parameters = _object(output.get("parameters", {}), "an output's parameters")
        if unknown := parameters.keys() - {"binary_data", "content_type"}:
            raise Refusal(f"Expected an output's parameter 'binary_data', got {show(min(unknown))}; leave it out.")
        outputs[name] = _boolean(parameters, "binary_data") if "binary_data" in parameters else binary
    return outputs
