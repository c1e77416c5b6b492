"""Anytime inference and model compression built on local critic training.

Imports nothing, so that the runtime never drags torch in.
"""

__version__ = "0.1.0"
