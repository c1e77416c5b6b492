"""What benchmarks/throughput.py compares the server with: a bare app of FastAPI and onnxruntime, without any check.

POST / takes a batch in the V2 protocol's JSON, POST /binary in its JSON with bytes behind it, and POST /raw as bytes
alone, little-endian float32. The environment names the graph. All run on the event loop, which is faster than a thread
for each request.
"""

from __future__ import annotations

import json
import os

import numpy as np
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel

import anytime_lct  # noqa: F401 - it switches off the telemetry of onnxruntime, which is imported behind it

GRAPH = "THROUGHPUT_GRAPH"


class Tensor(BaseModel):
    name: str
    shape: list[int]
    datatype: str
    data: list[float]


class Body(BaseModel):
    inputs: list[Tensor]


def create_app() -> FastAPI:
    """Return the app for the graph that the environment names, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    graph = onnxruntime.InferenceSession(os.environ[GRAPH], options, providers=["CPUExecutionProvider"])
    input_ = graph.get_inputs()[0]
    app = FastAPI()

    def logits_of(x: np.ndarray) -> np.ndarray:
        return np.asarray(graph.run(None, {input_.name: x})[0])

    @app.post("/")
    async def infer(body: Body) -> dict[str, object]:
        tensor = body.inputs[0]
        logits = logits_of(np.array(tensor.data, np.float32).reshape(tensor.shape))
        output = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape), "data": logits.ravel().tolist()}
        return {"outputs": [output]}

    @app.post("/binary")
    async def infer_binary(request: Request) -> Response:
        body, length = await request.body(), int(request.headers["inference-header-content-length"])
        tensor = json.loads(body[:length])["inputs"][0]
        logits = logits_of(np.frombuffer(body, "<f4", offset=length).reshape(tensor["shape"]))
        parameters = {"binary_data_size": logits.nbytes}
        output = {"name": "logits", "datatype": "FP32", "shape": list(logits.shape), "parameters": parameters}
        head = json.dumps({"outputs": [output], "parameters": {}}).encode()
        headers = {"inference-header-content-length": str(len(head))}
        return Response(head + logits.tobytes(), headers=headers, media_type="application/octet-stream")

    @app.post("/raw")
    async def infer_raw(request: Request) -> Response:
        x = np.frombuffer(await request.body(), "<f4").reshape(-1, *input_.shape[1:])
        return Response(logits_of(x).tobytes(), media_type="application/octet-stream")

    return app
