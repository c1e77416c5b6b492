"""Writes bundles of networks made in tests, with every choice as a keyword argument."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from anytime_lct.exits.bundle import Bundle, Contents
from anytime_lct.exits.profile import Profile
from anytime_lct.exits.thresholds import ThresholdTable
from anytime_lct.export.write import Trained, write_bundle
from anytime_lct.network import LCTNetwork
from anytime_lct.task import Facts


def export(
    network: LCTNetwork,
    facts: Facts,
    profile: Profile,
    out: Path,
    *,
    model_name: str,
    thresholds: ThresholdTable | None = None,
    exits: Sequence[int] | None = None,
    only: Literal["exits", "groups"] | None = None,
    single: bool = False,
    **options: Any,
) -> Bundle:
    trained = Trained(network, facts, profile, model_name, thresholds)
    return write_bundle(trained, out, Contents(exits, only, single), **options)
