"""What an experiment consists of: runs of `anytime-lct train`, and which number of which run stands in which cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from anytime_lct.recipes import reading as recipes
from anytime_lct.recipes.recipe import Recipe

Scale = Literal["small", "paper"]
Kind = Literal["quality", "complexity", "memory", "descent", "time"]
Given = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Run:
    """One training run but for its seed. `after` names the run whose weights it starts from, of the same seed."""

    name: str
    given: Given
    after: str | None = None
    workers: int = 1

    def recipe(self, seed: int, data_root: str, weights: str | None = None) -> Recipe:
        """Return the completed recipe; a `root` of the data is taken as below `data_root`."""
        given = {table: dict(keys) for table, keys in self.given.items()}
        place = given["data"].get("root")
        given["data"]["root"] = f"{data_root}/{place}" if place else data_root
        train = given.setdefault("train", {})
        train["seed"] = seed
        if weights is not None:
            train["weights"] = weights
        return recipes.complete(given)


@dataclass(frozen=True)
class Cell:
    """One figure: exit `exit` of a run (from 1; 0 is the main network), beside the paper's, where that has one."""

    row: str
    column: str
    run: str
    exit: int = 0
    paper: float | None = None
    worker: int = 1


@dataclass(frozen=True)
class Experiment:
    """A table or figure. `differs` says in which ways the setting is not the paper's."""

    name: str
    title: str
    kind: Kind
    runs: tuple[Run, ...]
    cells: tuple[Cell, ...]
    unit: str = "test accuracy, %"
    differs: tuple[str, ...] = ()


def merged(*layers: Given) -> dict[str, dict[str, Any]]:
    """Lay tables of recipe keys over each other, the later ones on top."""
    found: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for table, keys in layer.items():
            found[table] = {**found.get(table, {}), **keys}
    return found
