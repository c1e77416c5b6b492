"""Runs and experiments of the settings: the recipe of a run, and an experiment of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from anytime_lct.reproduce import settings
from anytime_lct.reproduce.plan import Cell, Experiment, Kind, Run, Scale, Tables, merged
from anytime_lct.reproduce.settings import Setting
from anytime_lct.reproduce.titles import TITLES


def make_run(
    setting: Setting, method: str, groups: int = 1, overrides: Tables | None = None, tag: str = "", **fields: Any
) -> Run:
    """Make a run of a setting, named by setting, method, number of critics and `tag`."""
    parts = [setting.key, method, *([f"n{groups - 1}"] if groups > 1 else []), *([tag] if tag else [])]
    method_tables: dict[str, dict[str, Any]] = {"train": {"method": method}}
    if groups > 1:
        places = setting.paper_places if groups == 4 else ()
        method_tables["cut"] = {"by": "layers", "groups": groups, "places": places}
    tables = merged(setting.tables, setting.methods.get(method, {}), method_tables, overrides or {})
    depths = tables.get("critic", {}).get("depth")
    if isinstance(depths, list) and groups > 1:  # of the critics nearest to the output
        tables["critic"]["depth"] = depths[-(groups - 1) :]
    return Run("-".join(parts), tables, **fields)


def make_experiment(
    name: str,
    kind: Kind,
    pairs: Sequence[tuple[Cell, Run]],
    scale: Scale,
    differences: Sequence[str] = (),
    *,
    with_general: bool = True,
    **fields: Any,
) -> Experiment:
    """Make an experiment of its cells, each with its run; `with_general` adds the differences of the scale."""
    runs = {run.name: run for _, run in pairs}
    return Experiment(
        name, TITLES[name], kind, tuple(runs.values()), tuple(cell for cell, _ in pairs),
        differences=(*(settings.DIFFERENCES[scale] if with_general else ()), *differences), **fields,
    )  # fmt: skip
