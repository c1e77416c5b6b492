"""The input of a request: checked by name, shape and datatype first, then read into what the network takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from anytime_lct.errors import InputError
from anytime_lct.exits.bundle import Manifest
from anytime_lct.pixels import fitting_bytes
from anytime_lct.runtime import preprocess
from anytime_lct.serving.limits import Limits
from anytime_lct.serving.request import Refusal, show
from anytime_lct.serving.v2 import tensors
from anytime_lct.serving.v2.json_text import Numbers, read_object
from anytime_lct.serving.v2.pictures import is_picture, takes_pictures

INPUT = "input"
BASE64 = "base64"  # as MLServer calls the content type of binary data in JSON
SHARED_MEMORY = frozenset({"shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"})


def sample_bytes(manifest: Manifest) -> int:
    """Return the bytes of one image, or of another sample, as the network takes it."""
    return _bytes_of(manifest.input_shape, 8 if manifest.symbols else 4)


@lru_cache(maxsize=256)
def _bytes_of(shape: tuple[int | str, ...], each: int) -> int:
    return each * math.prod(size for size in shape if isinstance(size, int))


def max_images(manifest: Manifest, limits: Limits) -> int:
    """Return how many images a request may have.

    They are resized to the network's size: no more of them than fit into a body at that size.
    """
    return min(limits.images, max(1, limits.body // sample_bytes(manifest)))


def describe_raw(body: memoryview, manifest: Manifest) -> dict[str, Any]:
    """Return the description of an input that is the whole body: an image file, or numbers; raises Refusal."""
    if takes_pictures(manifest) and is_picture(body):
        return {"name": INPUT, "datatype": tensors.TEXT, "shape": [1]}
    is_text, size = manifest.row.is_text, len(body)
    datatype, bytes_each = "INT64" if manifest.symbols else "FP32", 8 if is_text else sample_bytes(manifest)
    count, rest = divmod(size, bytes_each)
    if rest or not count:
        file = ", or a JPEG or PNG file" if takes_pictures(manifest) else ""
        raise Refusal(
            f"Expected {datatype} of a multiple of {bytes_each} bytes{file}, as Inference-Header-Content-Length is 0, "
            f"got {size} bytes; give the length of the request in JSON."
        )
    shape = [1, count] if is_text else [count, *manifest.input_shape[1:]]
    return {"name": INPUT, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": size}}


def find_input(raw: object, manifest: Manifest, limits: Limits) -> tuple[dict[str, Any], tuple[int, ...], int]:
    """Return the description of the input tensor, its shape, and the bytes of the network's input; raises Refusal."""
    if not isinstance(raw, list) or not raw:
        raise Refusal(f"Expected 'inputs' as a list of one tensor named '{INPUT}', got {show(raw)}; send one.")
    tensor: dict[str, Any] = {}
    for entry in cast("list[object]", raw):
        tensor = read_object(entry, "an input")
        if tensor.get("name") != INPUT:
            raise Refusal(f"Expected an input named '{INPUT}', got {show(tensor.get('name'))}; rename it.")
    if len(raw) > 1:
        raise Refusal(f"Expected the input '{INPUT}' once, got it {len(raw)} times; send one batch.")
    shape = tensors.read_shape(tensor.get("shape"))
    if manifest.row.is_text:
        count, limit, bytes_each = math.prod(shape), limits.characters, 8
    else:
        bytes_each = sample_bytes(manifest)
        count, limit = shape[0], max_images(manifest, limits)
    if count > limit:
        raise Refusal(f"Expected at most {limit} {manifest.samples} in a request, got {count}; send several requests.")
    return tensor, shape, count * bytes_each


def resizing_bytes(tensor: dict[str, Any], shape: tuple[int, ...], input_bytes: int, manifest: Manifest) -> int:
    """Return the bytes of memory that pixels take, beside themselves and an input of so many bytes, to become it."""
    rules = manifest.preprocessing
    if tensor.get("datatype") != "UINT8" or len(shape) != 4 or not (rules.height and rules.width and min(shape)):
        return 0  # no pixels, or none that are read
    _, height, width, channels = shape
    return fitting_bytes((height, width, channels), rules.height, rules.width, rules.resize) + 2 * input_bytes


def read_elements(
    tensor: dict[str, Any], shape: tuple[int, ...], binary: memoryview
) -> Sequence[str | bytes | memoryview]:
    """Return the elements of an input of BYTES: strings of JSON, or bytes, also from base64; raises Refusal."""
    if len(shape) != 1:
        raise Refusal(f"Expected BYTES of shape [batch], one text or file each, got {list(shape)}; fix the shape.")
    data = _data(tensor, binary)
    is_binary = isinstance(data, memoryview)
    elements = tensors.elements_from_bytes(shape, data) if is_binary else tensors.elements_from_list(shape, data)
    is_base64 = read_object(tensor.get("parameters", {}), "an input's parameters").get("content_type") == BASE64
    return list(map(tensors.from_base64, elements)) if is_base64 else elements


def read_input(
    tensor: dict[str, Any], shape: tuple[int, ...], binary: memoryview, manifest: Manifest, limits: Limits
) -> NDArray[Any]:
    """Return the input as the network takes it, from bytes or JSON, once; raises Refusal and InputError."""
    return preprocess.check_batch(_read_tensor(tensor, shape, binary, manifest, limits), manifest)


def _read_tensor(
    tensor: dict[str, Any], shape: tuple[int, ...], binary: memoryview, manifest: Manifest, limits: Limits
) -> NDArray[Any]:
    """Read the input, and convert pixels, text and half-precision numbers to what the network takes."""
    datatype: Any = tensor.get("datatype")
    if datatype not in (datatypes := _datatypes(manifest)):
        raise Refusal(f"Expected the datatype {', '.join(datatypes)}, got {show(datatype)}; convert the input.")
    if datatype == tensors.TEXT:
        return _encode(list(map(_read_text, read_elements(tensor, shape, binary))), manifest, limits)
    data = _data(tensor, binary)
    if datatype == "UINT8":
        _check_pixels(shape, manifest, limits)
    elif isinstance(data, Numbers):  # they take time to read
        preprocess.check_shape(shape, manifest.input_shape)
    read = tensors.from_bytes if isinstance(data, memoryview) else tensors.from_list
    array = read(datatype, shape, data)  # type: ignore[arg-type]
    if datatype == "FP16":
        return array.astype(np.float32)
    if datatype == "UINT8":
        try:
            return preprocess.from_array(array, manifest.preprocessing)
        except (MemoryError, OverflowError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise Refusal(f"Expected pixels that can be resized, got {list(shape)}; send smaller images.") from None
    return array


def _datatypes(manifest: Manifest) -> tuple[str, ...]:
    if manifest.input_dtype == "int64":
        return "INT64", "INT32", *((tensors.TEXT,) if manifest.preprocessing.takes_text else ())
    if manifest.preprocessing.kind == "array":
        return "FP32", "FP64", "FP16"
    return "FP32", "FP64", "FP16", "UINT8", *((tensors.TEXT,) if takes_pictures(manifest) else ())


def _check_pixels(shape: tuple[int, ...], manifest: Manifest, limits: Limits) -> None:
    """Refuse pixels of no shape that pictures have: resizing them would take memory and time without bound."""
    if len(shape) != 4:
        raise Refusal(f"Expected pixels of shape [batch, height, width, channels], got {list(shape)}; reshape them.")
    short, long = sorted(shape[1:3])
    # With `resize` the shorter side gets that length, and the longer one grows with it.
    grown = long * max(1.0, (manifest.preprocessing.resize or 0) / max(1, short))
    if grown > limits.side:
        raise Refusal(
            f"Expected pixels of up to {limits.side} a side, also when resized, got the shape {list(shape)}; crop them."
        )


def _data(tensor: dict[str, Any], binary: memoryview) -> object:
    parameters = read_object(tensor.get("parameters", {}), "an input's parameters")
    if unsupported := parameters.keys() & SHARED_MEMORY:
        raise Refusal(f"Expected an input's parameter 'binary_data_size', got {show(min(unsupported))}; leave it out.")
    if "binary_data_size" not in parameters:
        if len(binary):
            raise Refusal(f"Expected no bytes behind the JSON, got {len(binary)}; give 'binary_data_size'.")
        if "data" not in tensor:
            raise Refusal("Expected 'data' or 'binary_data_size' of the input, got neither; send one.")
        return tensor.pop("data")  # what was read from JSON takes many times the bytes of the array
    size = parameters["binary_data_size"]
    if "data" in tensor:
        raise Refusal("Expected one of 'data' and 'binary_data_size', got both; leave one out.")
    if type(size) is not int or size != len(binary):
        raise Refusal(
            f"Expected 'binary_data_size' {len(binary)}, as many as follow the JSON, got {show(size)}; fix it."
        )
    return binary


def _read_text(element: str | bytes | memoryview) -> str:
    try:
        return element if isinstance(element, str) else str(element, "utf-8")
    except UnicodeDecodeError:
        raise Refusal("Expected UTF-8 text in BYTES, got other bytes; encode the text as UTF-8.") from None


def _encode(texts: list[str], manifest: Manifest, limits: Limits) -> NDArray[np.int64]:
    lengths = {len(text) for text in texts}
    if len(lengths) > 1 and manifest.row.is_text:
        raise Refusal(f"Expected texts of one length in a batch, got {len(lengths)} lengths; send them one by one.")
    if sum(map(len, texts)) > limits.characters:
        raise Refusal(f"Expected at most {limits.characters} characters in a request, got more; shorten the text.")
    if not texts:
        raise Refusal("Expected at least one text, got none; send some.")
    return np.concatenate([preprocess.from_text(text, manifest.preprocessing) for text in texts])
