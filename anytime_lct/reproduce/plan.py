"""An experiment: its runs of `anytime-lct train`, and which number of which run fills each cell of its table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from anytime_lct.recipes import reading
from anytime_lct.recipes.defaults import BUILT_IN
from anytime_lct.recipes.recipe import Recipe

Scale = Literal["small", "paper"]
Kind = Literal["quality", "exits", "complexity", "memory", "descent", "time"]
Tables = Mapping[str, Mapping[str, Any]]  # of a recipe


@dataclass(frozen=True)
class Run:
    """One training run, without its seed. `after` names the run whose weights it starts from, with the same seed.

    `rules` are mean budgets, as shares of the main network's multiply-adds, for which rules for stopping are searched.
    """

    name: str
    tables: Tables
    after: str | None = None
    workers: int = 1
    rules: tuple[float, ...] = ()

    def recipe(self, seed: int, data_root: str, weights: str | None = None) -> Recipe:
        """Return the completed recipe; a `root` in the data table is a subfolder of `data_root`."""
        tables = {table: dict(keys) for table, keys in self.tables.items()}
        subfolder = tables["data"].get("root")
        if tables["data"]["name"] not in BUILT_IN:
            tables["data"]["root"] = f"{data_root}/{subfolder}" if subfolder else data_root
        train = tables.setdefault("train", {})
        train["seed"] = seed
        if weights is not None:
            train["weights"] = weights
        return reading.complete(tables)


@dataclass(frozen=True)
class Cell:
    """One figure: exit `exit` of a run (from 1; 0 is the main network), and the paper's figure if it has one.

    Instead of an exit it is that of the rule for stopping at the mean budget `rule`, a share of the main network's
    multiply-adds, or of the column `path` (from 1) of a fractal network.
    """

    row: str
    column: str
    run: str
    exit: int = 0
    paper: float | None = None
    worker: int = 1
    rule: float = 0.0
    path: int = 0


@dataclass(frozen=True)
class Experiment:
    """A table or figure. `differences` are sentences on how the setting differs from the paper's."""

    name: str
    title: str
    kind: Kind
    runs: tuple[Run, ...]
    cells: tuple[Cell, ...]
    unit: str = "test accuracy, %"
    differences: tuple[str, ...] = ()


def merged(*layers: Tables) -> dict[str, dict[str, Any]]:
    """Merge tables of recipe keys; a later layer overrides an earlier one."""
    tables: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for table, keys in layer.items():
            tables[table] = {**tables.get(table, {}), **keys}
    return tables
