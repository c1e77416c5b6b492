"""The columns of a trained fractal network, measured as exits: each answers alone (Larsson et al., 2017)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from anytime_lct.analysis import measure
from anytime_lct.exits.profile import Profile
from anytime_lct.network import LCTNetwork
from anytime_lct.run_folder import folder as run_folder


def column_profile(folder: Path, column: int) -> Profile:
    """Return the profile of a column, from 1, of the fractal network of a run; it is measured once, and kept there."""
    path = folder / f"column_{column}.json"
    if not path.exists():
        opened = run_folder.open_run(folder)
        network: Any = opened.network.groups[0]
        alone = LCTNetwork([network.column(column)], [])
        measure.profile(alone, opened.load_data(), f"column {column}").save(path)
    return Profile.load(path)
