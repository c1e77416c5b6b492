"""Logits compared with those that they must equal: of torch when a bundle is written, of the bundle on any provider."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from anytime_lct.errors import BundleError, ProviderError
from anytime_lct.exits.bundle import Bundle

NAME = "parity.npz"
TOLERANCE = 1e-4
RELATIVE_TOLERANCE = 1e-5
# Of the largest logit: providers round int8 in different places, and a hidden tensor has 256 values only.
INT8_TOLERANCE = 0.1

Precision = Literal["float32", "int8"]


def allowed(expected: NDArray[np.float32], precision: Precision = "float32") -> float:
    """Return how far logits may differ from the expected ones.

    In float32 that is 1e-4 or, for logits beyond 10, 1e-5 of the largest: seven significant digits, not seven decimals.
    """
    largest = float(np.abs(expected).max())
    return INT8_TOLERANCE * largest if precision == "int8" else max(TOLERANCE, RELATIVE_TOLERANCE * largest)


def difference(what: str, logits: NDArray[np.float32], expected: NDArray[np.float32], precision: Precision) -> float:
    """Return the largest difference of any logit; raises ProviderError where it is larger than allowed, or nan."""
    bound, largest = allowed(expected, precision), float(np.abs(logits - expected).max())
    if not largest <= bound:
        raise ProviderError(
            f"Expected {what} to answer as the bundle stores it, within {bound:.1e}, but logits differ by "
            f"{largest:.1e}; use another provider, such as cpu."
        )
    return largest


def stored(bundle: Bundle) -> tuple[NDArray[Any], Mapping[int, NDArray[np.float32]]]:
    """Return the inputs that a bundle stores, and the logits (B, K) or (B, T, K) of its exits; raises BundleError."""
    if bundle.manifest.parity is None:
        raise BundleError(
            f"Expected a bundle with stored answers to compare with, got '{bundle.path}' without; export it again."
        )
    path = bundle.path / bundle.manifest.parity.name
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays["input"], {i: arrays[f"exit_{i}"] for i in bundle.manifest.served}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"The stored answers '{path}' cannot be read ({error}); export the bundle again.") from None
