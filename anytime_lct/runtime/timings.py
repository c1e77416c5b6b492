"""How long every group and critic of a bundle takes on this machine: measured once, stored beside the bundle.

BUNDLE.calibration.json is beside the folder BUNDLE, not in it: a bundle is copied to other machines, its timings not.
Those of an execution provider other than the CPU are in BUNDLE.PROVIDER.calibration.json.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from anytime_lct.disk import Record, parse, read_text, write
from anytime_lct.errors import BundleError
from anytime_lct.exits.bundle import Bundle
from anytime_lct.runtime.providers import PROVIDERS
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
    """Times by batch size, in samples (for text: characters), on `machine`, with `threads` threads per request.

    `runtime` is the software of the execution provider and its version.
    """

    format: int = 1
    bundle: str
    machine: str
    runtime: str
    provider: str = "cpu"
    threads: Annotated[int, Field(ge=1)]
    sizes: dict[int, Times]

    @model_validator(mode="after")
    def _sizes_rise(self) -> Timings:
        if not self.sizes or list(self.sizes) != sorted(self.sizes) or next(iter(self.sizes)) < 1:
            raise ValueError("there must be at least one size, and sizes must be positive and in rising order")
        return self

    def fits(self, bundle: Bundle, threads: int | None) -> bool:
        """Return whether these are times of this bundle on this machine, with this number of threads (None: any)."""
        here = (bundle_sum(bundle), machine(), PROVIDERS[self.provider].version, threads or self.threads)
        return (self.bundle, self.machine, self.runtime, self.threads) == here


def timings_path(bundle: Path, provider: str = "cpu") -> Path:
    """Return the path of a bundle's timings on a provider, beside its folder.

    >>> timings_path(Path("bundles/digits"))
    PosixPath('bundles/digits.calibration.json')
    """
    folder = bundle.resolve() if bundle.name in ("", "..") else bundle
    return folder.with_name(f"{folder.name}{'' if provider == 'cpu' else f'.{provider}'}.calibration.json")


def bundle_sum(bundle: Bundle) -> str:
    """Return the checksum of the manifest, which holds the checksums of all other files."""
    return hashlib.sha256(bundle.manifest.as_json().encode()).hexdigest()


def load(bundle: Bundle, threads: int | None, provider: str = "cpu") -> Timings | None:
    """Read the timings beside a bundle; None where there are none, or only ones of another bundle or machine.

    With `threads`, timings of another number of threads count as none.
    """
    path = timings_path(bundle.path, provider)
    if not path.is_file():
        return None
    remedy = f"measure again with: {calibrate_command(bundle, provider)}"
    timings = parse(Timings, read_text(path, BundleError, remedy), path, BundleError, remedy)
    return timings if timings.provider == provider and timings.fits(bundle, threads) else None


def calibrate_command(bundle: Bundle, provider: str) -> str:
    """Return the command that measures the timings of a bundle on a provider."""
    return f"anytime-lct calibrate {bundle.path}{'' if provider == 'cpu' else f' --provider {provider}'}"


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
    path = timings_path(bundle.path, timings.provider)
    write(path, timings.model_dump_json(indent=1) + "\n", BundleError)
    return path
