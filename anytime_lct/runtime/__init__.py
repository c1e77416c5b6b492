"""All that a device needs to answer from a bundle: numpy and onnxruntime, no torch."""

from anytime_lct.runtime.session import Answer, AnytimeSession

__all__ = ["Answer", "AnytimeSession"]
