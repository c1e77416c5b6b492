"""What a device needs to answer from a bundle: numpy and onnxruntime, no torch."""

from anytime_lct.runtime.answer import Answer
from anytime_lct.runtime.generation import Character, generate
from anytime_lct.runtime.session import AnytimeSession

__all__ = ["Answer", "AnytimeSession", "Character", "generate"]
