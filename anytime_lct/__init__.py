"""Anytime inference and model compression built on local critic training.

Imports nothing but the standard library, so that the runtime never drags torch in.
"""

import os

__version__ = "0.1.0"

# onnxruntime's wheels write a device id into the home folder, queue events and look a host up when they are imported,
# unless this is set before.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
