"""What of the package is public, as a page; the site writes every name out from its docstring.

python docs/api.py        writes docs/api.md
"""

from __future__ import annotations

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import anytime_lct
from anytime_lct import errors

HOUSE = Path(__file__).parent.parent
PAGE = HOUSE / "docs" / "api.md"
OPENING = """# API reference

What is listed here is public: names, parameters and results change with a line in [CHANGELOG.md](../CHANGELOG.md), and
not without. All else is internal. Errors are subclasses of `LCTError`, each with one sentence that says what was
expected, what came and what to do. Nothing under *Choosing*, *Answering* and *Serving* needs torch.
`python docs/api.py` writes this page.
"""
PUBLIC = {
    "The verbs": """
        verbs.train verbs.analyze verbs.thresholds verbs.export verbs.sweep verbs.save verbs.reference
        run_folder.paths.Changes training.logs.Log training.logs.Point
        training.events.Start training.events.Progress training.events.Epoch training.events.Note
    """,
    "Recipes": """
        recipes.reading.complete recipes.reading.read recipes.reading.write recipes.reading.shipped
        recipes.recipe.Recipe recipes.recipe.DataRecipe recipes.recipe.ModelRecipe recipes.recipe.CutRecipe
        recipes.recipe.CriticRecipe recipes.recipe.RuleRecipe recipes.recipe.TrainRecipe
        recipes.recipe.OptimizerRecipe recipes.recipe.ScheduleRecipe
    """,
    "The rule": """
        lct.Rule lct.descend lct.LocalLoss task.losses task.scores descent.measure descent.Descent
    """,
    "Networks and critics": """
        network.LCTNetwork training.own.train evaluation.evaluate evaluation.Evaluation
        critics.kinds.build critics.kinds.layout counting.count models.networks.build
    """,
    "Data": """
        data.datasets.load data.batches.Dataset data.images.ImageSet data.images.in_memory data.batches.Images
        task.Facts
    """,
    "Choosing": """
        exits.budget.Budget exits.budget.Share exits.budget.Ask exits.budget.parse_count exits.budget.parse_flops
        exits.budget.parse_seconds exits.profile.Profile exits.profile.Exit exits.profile.Cost exits.profile.Quality
        exits.selector.select exits.selector.Selection exits.selector.pareto_front
        exits.thresholds.Thresholds exits.thresholds.ThresholdTable
    """,
    "Answering": """
        runtime.AnytimeSession runtime.Answer runtime.generate runtime.Character runtime.calibration.calibrate
        exits.bundle.Bundle exits.bundle.Manifest exits.bundle.Preprocessing exits.bundle.Contents
    """,
    "Serving": """
        serving.http.app.build serving.access.Access
    """,
    "Errors": " ".join(
        f"errors.{name}" for name, kind in vars(errors).items() if inspect.isclass(kind) and issubclass(kind, Exception)
    ),
}


def page() -> str:
    """Return docs/api.md as it should be."""
    parts = [OPENING]
    for title, names in PUBLIC.items():
        rows = "".join(f"| [`{name}`]({_file(name)}) | {_sentence(_object(name))} |\n" for name in _full(names))
        parts.append(f"\n## {title}\n\n| name | what it is |\n|---|---|\n{rows}")
    return "".join(parts)


def _full(names: str) -> list[str]:
    return [f"anytime_lct.{name}" for name in names.split()]


def _object(name: str) -> Any:
    module, _, own = name.rpartition(".")
    return getattr(import_module(module), own)


def _file(name: str) -> str:
    """Return the path, from docs/, of the file that defines a name."""
    path = Path(inspect.getfile(_object(name)))
    inside = Path(anytime_lct.__file__).parent
    return f"../{path.relative_to(inside.parent if path.is_relative_to(inside) else HOUSE).as_posix()}"


def _sentence(named: Any) -> str:
    """Return the first sentence of a docstring, fit for a row of a table."""
    paragraph = " ".join((inspect.getdoc(named) or "").split("\n\n")[0].split())
    return re.split(r"(?<=[.:])\s(?=[A-Z`])", paragraph)[0].rstrip(".:").replace("|", "\\|") + "."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
