"""What every group and critic of a bundle takes on this machine: measured once, kept beside the bundle.

BUNDLE.calibration.json stands beside the folder BUNDLE, not in it: a bundle travels, its timings do not.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import onnxruntime as ort
from pydantic import Field, model_validator

from anytime_lct.disk import Record, parse, read_text, write
from anytime_lct.errors import BundleError
from anytime_lct.exits.bundle import MANIFEST, Bundle
from anytime_lct.stopwatch import machine

Seconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Quantiles(Record):
    """Seconds of one part: half, nine tenths and 99 in 100 of its runs took at most so long."""

    p50: Seconds
    p90: Seconds
    p99: Seconds


class Times(Record):
    """Seconds of all parts for batches of one size: groups from 1 on, and the critics by number."""

    groups: tuple[Quantiles, ...]
    critics: dict[int, Quantiles]


class Timings(Record):
    """Times by size of batch, in samples (of text: characters), on `machine`, with `threads` threads a request."""

    format: int = 1
    bundle: str
    machine: str
    onnxruntime: str
    threads: Annotated[int, Field(ge=1)]
    sizes: dict[int, Times]

    @model_validator(mode="after")
    def _sizes_rise(self) -> Timings:
        if not self.sizes or list(self.sizes) != sorted(self.sizes) or next(iter(self.sizes)) < 1:
            raise ValueError("sizes need to be positive and in rising order, one at least")
        return self

    def fits(self, bundle: Bundle, threads: int | None) -> bool:
        """Tell whether these are the times of this very bundle on this machine, with so many threads (None: any)."""
        here = (bundle_sum(bundle), machine(), ort.__version__, threads or self.threads)
        return (self.bundle, self.machine, self.onnxruntime, self.threads) == here


def timings_path(bundle: Path) -> Path:
    """Return where a bundle's timings stand: beside its folder.

    >>> timings_path(Path("bundles/digits"))
    PosixPath('bundles/digits.calibration.json')
    """
    whole = bundle.resolve() if bundle.name in ("", "..") else bundle
    return whole.with_name(f"{whole.name}.calibration.json")


def bundle_sum(bundle: Bundle) -> str:
    """Return the sum of the manifest, which holds the sums of all other files."""
    return hashlib.sha256((bundle.path / MANIFEST).read_bytes()).hexdigest()


def load(bundle: Bundle, threads: int | None) -> Timings | None:
    """Read the timings beside a bundle; None where there are none, or they are of another machine, bundle or kind.

    `threads` None takes those of any number of threads.
    """
    path = timings_path(bundle.path)
    if not path.is_file():
        return None
    remedy = f"measure anew with: anytime-lct calibrate {bundle.path}"
    found = parse(Timings, read_text(path, BundleError, remedy), path, BundleError, remedy)
    return found if found.fits(bundle, threads) else None


def save(timings: Timings, bundle: Bundle) -> Path:
    """Write timings beside their bundle, whole or not at all; raises BundleError where the folder is not writable."""
    path = timings_path(bundle.path)
    write(path, timings.model_dump_json(indent=1) + "\n", BundleError)
    return path
