"""Imports the package before any test does: onnxruntime, which some tests import too, then sends no telemetry."""

import anytime_lct  # noqa: F401
