"""Apps of the server over two tiny bundles and an engine without a scheduler."""

from __future__ import annotations

import numpy as np
from fake_engine import open_repository

from anytime_lct.exits.budget import DEFAULT_ASK
from anytime_lct.serving.access import Access
from anytime_lct.serving.http.app import create_app
from anytime_lct.serving.limits import DEFAULT_LIMITS, Limits
from anytime_lct.serving.metrics import Metrics
from anytime_lct.serving.service import Service

X = np.random.default_rng(0).standard_normal((2, 1, 6, 6)).astype(np.float32)
JSON = {"inputs": [{"name": "input", "datatype": "FP32", "shape": [2, 1, 6, 6], "data": X.tolist()}]}
INFER = "/v2/models/tiny/infer"
ANSWER = 2 * 5 * 24  # two samples, five classes, 24 bytes a number of JSON
ADMIN = Access(allow_admin=True)


def service_of(folder, engine, limits=DEFAULT_LIMITS, default=DEFAULT_ASK):
    return Service(open_repository(folder), engine, Metrics(), limits, default)


def bounded(folder, engine, **limits):
    return create_app(service_of(folder, engine, limits=Limits(**limits)), access=ADMIN)


def refused(response, status, words=""):
    assert response.status == status, response.body
    assert list(response.json()) == ["error"] and words in response.json()["error"]
    return response
