"""The description of the server in OpenAPI 3.1, complete enough to generate requests from it."""

from __future__ import annotations

from typing import Any, get_args

from anytime_lct import __version__
from anytime_lct.exits.budget import StopReason
from anytime_lct.exits.thresholds import MEASURES
from anytime_lct.serving.v2.outputs import OUTPUTS, OUTPUTS_OF_NUMBERS
from anytime_lct.serving.v2.parameters import MODES
from anytime_lct.serving.v2.protocol import HEADER_LENGTH, MAX_ID
from anytime_lct.serving.v2.tensors import DTYPES, MAX_DIMENSIONS, TEXT

Json = dict[str, Any]


def describe(models: dict[str, list[str]], root_path: str = "", has_keys: bool = False) -> Json:
    """Return the description of a server of these models, each with its versions, below `root_path`.

    >>> describe({"digits": ["1"]})["openapi"]
    '3.1.0'
    """
    versions = sorted({version for each in models.values() for version in each}, key=int)
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "enum": list(models)}}
    version = {"name": "version", "in": "path", "required": True, "schema": {"type": "string", "enum": versions}}
    paths: Json = {
        "/v2": {"get": _operation("Name, version and extensions.", "Server")},
        "/v2/models/stats": {"get": _operation("The statistics of all models.", "Statistics")},
        "/v2/health/live": {"get": _operation("Whether the process answers.", "Live")},
        "/v2/health/ready": {"get": _operation("Whether requests are accepted.", "Ready", "503")},
        "/v2/repository/index": {"post": _operation("The models by name and version.", "Index")},
        "/v2/repository/models/{model}/load": {
            "post": _administration(model, "Reload a bundle without dropping a request.")
        },
        "/v2/repository/models/{model}/unload": {"post": _administration(model, "Take a model out of service.")},
        "/metrics": {"get": _plain("The metrics, for Prometheus.", "text/plain")},
        "/openapi.json": {"get": _plain("This description.", "application/json")},
        "/": {"get": _plain("A page to try the server.", "text/html")},
    }
    for prefix, parameters in (
        ("/v2/models/{model}", [model]),
        ("/v2/models/{model}/versions/{version}", [model, version]),
    ):
        for tail, summary, schema in (
            ("", "A model's inputs and outputs.", "Model"),
            ("/ready", "Whether a model is in service.", "ModelReady"),
            ("/config", "The same as a model configuration of Triton.", "Config"),
            ("/stats", "The statistics of a model.", "Statistics"),
            ("/exits", "The cost and quality of every exit.", "Exits"),
        ):
            paths[prefix + tail] = {"get": {**_operation(summary, schema, "404"), "parameters": parameters}}
        errors = ("400", "404", "408", "413", "415", "503")
        paths[f"{prefix}/infer"] = {
            "post": {
                **_operation("Answer a batch within its budget.", "Answer", *errors),
                "parameters": [*parameters, LENGTH],
                "requestBody": _content({"$ref": "#/components/schemas/Request"}),
            }
        }
    components: Json = {"schemas": SCHEMAS}
    description: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "anytime-lct",
            "version": __version__,
            "description": 'The Open Inference Protocol V2; every error is {"error": "..."}.',
        },
        "paths": paths,
        "components": components,
    }
    if root_path:
        description["servers"] = [{"url": root_path}]
    if has_keys:
        components["securitySchemes"] = KEY_SCHEMES
        description["security"] = [{name: []} for name in KEY_SCHEMES]
    return description


def _content(schema: Json, required: bool = True) -> Json:
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _administration(model: Json, summary: str) -> Json:
    return {
        **_operation(summary, "Empty", "400", "403", "404", "408", "413", "415"),
        "parameters": [model],
        "requestBody": _content({"type": "object", "maxProperties": 0}, required=False),
    }


def _operation(summary: str, schema: str, *errors: str) -> Json:
    answer = {"description": "The answer.", "content": {"application/json": {"schema": _ref(schema)}}}
    refusal = {
        "description": "Why the request is not answered.",
        "content": {"application/json": {"schema": _ref("Error")}},
    }
    if schema == "Ready":
        refusal = {
            "description": "Not accepting requests.",
            "content": {"application/json": {"schema": _ref("Ready")}},
        }
    return {"summary": summary, "responses": {"200": answer, **dict.fromkeys(errors, refusal)}}


def _plain(summary: str, media_type: str) -> Json:
    return {"summary": summary, "responses": {"200": {"description": "The answer.", "content": {media_type: {}}}}}


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: list[str], **properties: Json) -> Json:
    return {"type": "object", "required": required, "properties": properties}


def _closed(required: list[str], **properties: Json) -> Json:
    return {**_object(required, **properties), "additionalProperties": False}


def _list(items: Json, **more: Any) -> Json:
    return {"type": "array", "items": items, **more}


STRING: Json = {"type": "string"}
NUMBER: Json = {"type": "number"}
NON_NEGATIVE: Json = {"type": "integer", "minimum": 0}
POSITIVE: Json = {"type": "integer", "minimum": 1}
BOOLEAN: Json = {"type": "boolean"}
COUNT: Json = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "examples": ["20M", "1.5G"]}]}
FLOPS: Json = {"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "examples": ["20M", "70%"]}]}
LENGTH: Json = {
    "name": HEADER_LENGTH.decode(),
    "in": "header",
    "required": False,
    "description": "The length of the JSON in bytes, where binary tensors follow.",
    "schema": NON_NEGATIVE,
}
KEY_SCHEMES: Json = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
NESTED: Json = {"type": "array", "items": {"anyOf": [NUMBER, STRING, {"type": "array"}]}}
SCHEMAS: Json = {
    "Error": _closed(["error"], error=STRING),
    "Empty": {"type": "object", "maxProperties": 0},
    "Live": _closed(["live"], live=BOOLEAN),
    "Ready": {"type": "object", "required": [], "properties": {"ready": BOOLEAN, "error": STRING}},
    "ModelReady": _closed(["name", "ready"], name=STRING, ready=BOOLEAN),
    "Server": _closed(["name", "version", "extensions"], name=STRING, version=STRING, extensions=_list(STRING)),
    "Index": _list(_object(["name", "version", "state"], name=STRING, version=STRING, state=STRING)),
    "Tensor": _closed(
        ["name", "datatype", "shape"], name=STRING, datatype=STRING, shape=_list({"type": "integer", "minimum": -1})
    ),
    "Model": _object(
        ["name", "versions", "platform", "inputs", "outputs"],
        name=STRING,
        versions=_list(STRING),
        platform=STRING,
        inputs=_list(_ref("Tensor")),
        outputs=_list(_ref("Tensor")),
        parameters=_object(["classes"], classes=_list(STRING)),
    ),
    "Config": _object(["name", "platform", "input", "output"], name=STRING, platform=STRING),
    "Statistics": _object(["model_stats"], model_stats=_list({"type": "object"})),
    "Exits": _object(
        ["model", "task", "metric", "exits"], model=STRING, task=STRING, metric=STRING, exits=_list({"type": "object"})
    ),
    "Parameters": _closed(
        [],
        timeout={"anyOf": [NON_NEGATIVE, {"type": "string", "examples": ["20ms"]}]},
        max_flops=FLOPS,
        max_params=COUNT,
        max_exit=POSITIVE,
        min_confidence={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        max_latency={"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string", "examples": ["5ms"]}]},
        measure={"enum": list(MEASURES)},
        mean_flops=FLOPS,
        mode={"enum": list(MODES)},
        binary_data_output=BOOLEAN,
    ),
    "Request": {
        **_object(
            ["inputs"],
            id={"type": "string", "maxLength": MAX_ID},
            parameters=_ref("Parameters"),
            inputs=_list(_ref("Input"), minItems=1, maxItems=1),
            outputs=_list(_ref("Output"), maxItems=len(OUTPUTS)),
        )
    },
    "Input": _object(
        ["name", "datatype", "shape"],
        name={"const": "input"},
        datatype={"enum": [*DTYPES, TEXT]},
        shape=_list(NON_NEGATIVE, minItems=1, maxItems=MAX_DIMENSIONS),
        data=NESTED,
        parameters=_object([], binary_data_size=NON_NEGATIVE, content_type=STRING),
    ),
    "Output": _object(
        ["name"],
        name={"enum": list(OUTPUTS | OUTPUTS_OF_NUMBERS)},
        parameters=_object([], binary_data=BOOLEAN, classification=NON_NEGATIVE),
    ),
    "Answer": _object(
        ["model_name", "model_version", "parameters", "outputs"],
        model_name=STRING,
        model_version=STRING,
        id=STRING,
        parameters=_object(
            ["exit", "exits_run", "stopped", "flops", "server_us"],
            exit=POSITIVE,
            exits_run=POSITIVE,
            stopped={"enum": list(get_args(StopReason))},
            flops=NUMBER,
            server_us=NON_NEGATIVE,
            on_time=BOOLEAN,
        ),
        outputs=_list(_object(["name", "datatype", "shape"], name=STRING, datatype=STRING, shape=_list(NON_NEGATIVE))),
    ),
}
