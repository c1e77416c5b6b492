"""How long every group and critic of a bundle takes on this machine: measured once, stored beside the bundle.

BUNDLE.calibration.json is beside the folder BUNDLE, not in it: a bundle is copied to other machines, its timings not.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated

import onnxruntime as ort
from pydantic import Field, model_validator

from anytime_lct.disk import Record, parse, read_text, write
from anytime_lct.errors import BundleError
from anytime_lct.exits.bundle import Bundle
from anytime_lct.stopwatch import machine

Seconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Quantiles(Record):
    """Quantiles of the seconds of one group or critic: the median, 90% and 99%."""

    p50: Seconds
    p90: Seconds
    p99: Seconds


class Times(Record):
    """Seconds of all groups, from 1 on, and of the critics by index, for batches of one size."""

    groups: tuple[Quantiles, ...]
    critics: dict[int, Quantiles]


class Timings(Record):
    """Times by batch size, in samples (for text: characters), on `machine`, with `threads` threads per request."""

    format: int = 1
    bundle: str
    machine: str
    onnxruntime: str
    threads: Annotated[int, Field(ge=1)]
    sizes: dict[int, Times]

    @model_validator(mode="after")
    def _sizes_rise(self) -> Timings:
        if not self.sizes or list(self.sizes) != sorted(self.sizes) or next(iter(self.sizes)) < 1:
            raise ValueError("there must be at least one size, and sizes must be positive and in rising order")
        return self

    def fits(self, bundle: Bundle, threads: int | None) -> bool:
        """Return whether these are times of this bundle on this machine, with this number of threads (None: any)."""
        here = (bundle_sum(bundle), machine(), ort.__version__, threads or self.threads)
        return (self.bundle, self.machine, self.onnxruntime, self.threads) == here


def timings_path(bundle: Path) -> Path:
    """Return the path of a bundle's timings, beside its folder.

    >>> timings_path(Path("bundles/digits"))
    PosixPath('bundles/digits.calibration.json')
    """
    folder = bundle.resolve() if bundle.name in ("", "..") else bundle
    return folder.with_name(f"{folder.name}.calibration.json")


def bundle_sum(bundle: Bundle) -> str:
    """Return the checksum of the manifest, which holds the checksums of all other files."""
    return hashlib.sha256(bundle.manifest.as_json().encode()).hexdigest()


def load(bundle: Bundle, threads: int | None) -> Timings | None:
    """Read the timings beside a bundle; None where there are none, or only ones of another bundle or machine.

    With `threads`, timings of another number of threads count as none.
    """
    path = timings_path(bundle.path)
    if not path.is_file():
        return None
    remedy = f"measure again with: anytime-lct calibrate {bundle.path}"
    timings = parse(Timings, read_text(path, BundleError, remedy), path, BundleError, remedy)
    return timings if timings.fits(bundle, threads) else None


def expect_writable(bundle: Bundle) -> None:
    """Raise BundleError where `save` cannot write, before timings are measured that would be lost."""
    folder = timings_path(bundle.path).parent
    if not os.access(folder, os.W_OK):
        raise BundleError(
            f"Expected the folder '{folder}' to be writable, as timings lie beside their bundle, got a read-only one; "
            f"copy the bundle elsewhere, or calibrate before the folder is made read-only."
        )


def save(timings: Timings, bundle: Bundle) -> Path:
    """Write timings beside their bundle, whole or not at all; raises BundleError where the folder is not writable."""
    path = timings_path(bundle.path)
    write(path, timings.model_dump_json(indent=1) + "\n", BundleError)
    return path
