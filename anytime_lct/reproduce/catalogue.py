"""The tables and figures of the paper by name, at the paper's size and at one that two CPU cores can carry."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from anytime_lct.errors import RecipeError
from anytime_lct.reproduce import paper, settings
from anytime_lct.reproduce.plan import Cell, Experiment, Given, Run, Scale, merged
from anytime_lct.reproduce.settings import Setting

NAMES = {
    "table1": "Test accuracy of backprop, DNI and LCT",
    "table2": "A larger network",
    "table3": "A multilayer perceptron: backprop, ADMM, DNI and LCT",
    "table4": "Backprop with joint losses",
    "table5": "LSTM language models: backprop and LCT",
    "table6": "Memory of each worker",
    "table7": "Quality of every exit (tables VII and IX)",
    "table8": "Complexity of every exit (tables VIII and X)",
    "fig3": "Sufficient descent during training, convolutional network",
    "fig4": "Sufficient descent during training, LSTM",
    "fig5": "Loss over training time, convolutional networks",
    "fig6": "Loss over training time, LSTM",
    "fig7": "Pipelined backprop and LCT over training time",
    "critics": "What the critics are and learn: forms of (5), losses, architectures",
}


def experiment(name: str, scale: Scale) -> Experiment:
    """Return an experiment by name; raises RecipeError where there is none such.

    >>> experiment("table3", "small").cells[0].paper
    98.05
    """
    if name not in MADE:
        raise RecipeError(f"Expected one of {', '.join(NAMES)}, got '{name}'; see anytime-lct reproduce list.")
    return MADE[name](scale)


def run(setting: Setting, method: str, groups: int = 1, given: Given | None = None, tag: str = "", **keys: Any) -> Run:
    """Make a run of a setting, named by what tells it from the others."""
    parts = [setting.key, method, *([f"n{groups - 1}"] if groups > 1 else []), *([tag] if tag else [])]
    own: dict[str, dict[str, Any]] = {"train": {"method": method}}
    if groups > 1:
        own["cut"] = {"groups": groups, "places": setting.papers_places if groups == 4 else ()}
    layers = [setting.given, setting.methods.get(method, {}), own, given or {}]
    return Run("-".join(parts), merged(*layers), **keys)


def _experiment(
    name: str,
    kind: Any,
    made: Iterable[tuple[Cell, Run]],
    scale: Scale,
    more: Sequence[str] = (),
    *,
    general: bool = True,
    **keys: Any,
) -> Experiment:
    pairs = list(made)
    runs = {run.name: run for _, run in pairs}
    return Experiment(
        name, NAMES[name], kind, tuple(runs.values()), tuple(cell for cell, _ in pairs),
        differs=(*(settings.DIFFERS[scale] if general else ()), *more), **keys,
    )  # fmt: skip


def _of_methods(table: paper.Table, chosen: Sequence[Setting], columns: Any) -> list[tuple[Cell, Run]]:
    made = []
    for setting in chosen:
        for column, (method, groups) in columns.items():
            figure = table.get(setting.of_paper, {}).get(column)
            it = run(setting, method, groups)
            made.append((Cell(setting.name, column, it.name, paper=figure), it))
            if method == "dni":
                without = merged(setting.methods.get("dni-no-labels", {}), {"dni": {"labels": False}})
                blind = run(setting, method, groups, without, "no-labels")
                made.append((Cell(setting.name, f"{column}, no labels", blind.name, paper=figure), blind))
    return made


METHODS = {
    "BP": ("bp", 1),
    **{f"DNI_n{n}": ("dni", n + 1) for n in (1, 2, 3)},
    **{f"LCT_n{n}": ("lct", n + 1) for n in (1, 2, 3)},
}


def _table1(scale: Scale) -> Experiment:
    return _experiment("table1", "quality", _of_methods(paper.TABLE_1, settings.images(scale), METHODS), scale)


def _table2(scale: Scale) -> Experiment:
    columns = {column: METHODS[column] for column in ("BP", "LCT_n1", "LCT_n2", "LCT_n3")}
    return _experiment("table2", "quality", _of_methods(paper.TABLE_2, settings.large(scale), columns), scale)


def _table3(scale: Scale) -> Experiment:
    columns = {"BP": ("bp", 1), "ADMM": ("admm", 1), "DNI_n1": ("dni", 2), "LCT_n1": ("lct", 2)}
    made = _of_methods(paper.TABLE_3, settings.perceptrons(scale), columns)
    for setting in settings.perceptrons(scale):
        own = run(setting, "lct", 2, settings.OWN, "own")
        made.append((Cell(setting.name, "LCT_n1, own loss", own.name), own))
    return _experiment("table3", "quality", made, scale, settings.OF_PERCEPTRONS, general=False)


def _table4(scale: Scale) -> Experiment:
    columns = {"Joint losses": ("joint", 4), "BP": ("bp", 1)}
    return _experiment("table4", "quality", _of_methods(paper.TABLE_4, settings.images(scale), columns), scale)


# What critics of text learn, and by how many layers, beside the paper's rule with the paper's linear critics.
TEXT_CRITICS = (("own loss", "own", settings.OWN), ("default", "default", settings.TEXT_DEFAULT))


def _table5(scale: Scale) -> Experiment:
    made = []
    for corpus, by_layers in settings.texts(scale).items():
        for layers, setting in by_layers.items():
            for method, groups in (("bp", 1), ("lct", layers)):
                row, column = f"{method.upper()}, {corpus}", f"{layers} layers"
                it = run(setting, method, groups)
                figure = paper.TABLE_5.get(f"{method.upper()}, {setting.of_paper}", {}).get(column)
                made.append((Cell(row, column, it.name, paper=figure), it))
            for words, tag, given in TEXT_CRITICS:
                own = run(setting, "lct", layers, given, tag)
                made.append((Cell(f"LCT, {words}, {corpus}", f"{layers} layers", own.name), own))
    return _experiment("table5", "quality", made, scale, unit="test BPC")


ONE_EPOCH: Given = {"train": {"epochs": 1, "track_descent": 0}}


def _table6(scale: Scale) -> Experiment:
    made = []
    for setting in (*settings.memory(scale), settings.deepest_text(scale)):
        for method, groups, tag in (("bp", 1, "BP"), ("lct", 4, "LCT_n3")):
            row = f"{tag}, {setting.name}"
            it = run(setting, method, groups, ONE_EPOCH, "memory", workers=groups)
            figures = paper.TABLE_6.get(f"{tag}, {setting.of_memory}", {})
            for worker in range(1, groups + 1):
                column = f"worker {worker}"
                made.append((Cell(row, column, it.name, worker=worker, paper=figures.get(f"GPU {worker}")), it))
    return _experiment("table6", "memory", made, scale, unit="peak memory, MiB")


def _table7(scale: Scale) -> Experiment:
    made: list[tuple[Cell, Run]] = []
    for setting in settings.images(scale):
        bp = run(setting, "bp")
        for groups in (4,) if scale == "paper" else (4, 2, 3):
            ends = "" if groups == 4 else f", N = {groups}"
            rows = {
                f"LCT_n{groups - 1}": run(setting, "lct", groups),
                f"joint losses{ends}": run(setting, "joint", groups),
                f"post-hoc exits behind BP{ends}": run(setting, "posthoc", groups, after=bp.name),
            }
            columns = (*paper.EXITS[: groups - 1], "Main")
            for words, it in rows.items():
                figures = paper.TABLE_7.get(f"{words}, {setting.of_paper}", {}) if groups == 4 else {}
                for exit_, column in enumerate(columns, start=1):
                    made.append((Cell(f"{words}, {setting.name}", column, it.name, exit_, figures.get(column)), it))
        alone = paper.TABLE_7["alone by BP, preliminary version, CIFAR-10"] if setting.is_cifar10 else {}
        for exit_, column in enumerate(paper.EXITS[:-1], start=1):
            it = run(setting, "alone", 4, {"train": {"exit": exit_}}, f"exit{exit_}")
            made.append((Cell(f"alone by BP, {setting.name}", column, it.name, 1, alone.get(column)), it))
        made.append((Cell(f"alone by BP, {setting.name}", "Main", bp.name, 0), bp))
    for corpus, by_layers in settings.texts(scale).items():
        for layers, setting in by_layers.items():
            of_text = {f"LCT_n{layers - 1}": run(setting, "lct", layers)}
            for words, tag, given in TEXT_CRITICS:
                of_text[f"LCT_n{layers - 1}, {words}"] = run(setting, "lct", layers, given, tag)
            for words, it in of_text.items():
                figures = paper.TABLE_9.get(f"{words}, {setting.of_paper}", {}) if layers == 4 else {}
                for exit_ in range(1, layers + 1):
                    column = paper.EXITS[exit_ - 1] if exit_ < layers else "Main"
                    row = f"{words}, LSTM, {corpus} (BPC)"
                    made.append((Cell(row, column, it.name, exit_, figures.get(column)), it))
    return _experiment("table7", "quality", made, scale, unit="test accuracy, % (LSTM: test BPC)")


def _table8(scale: Scale) -> Experiment:
    made = []
    for setting in (*settings.sized(scale), settings.deepest_text("paper")):
        it = run(setting, "lct", 4, {"critic": {"kind": setting.papers_critic}}, "paper-critics")
        figures = {**paper.TABLE_8, **paper.TABLE_10}.get(setting.of_complexity, {})
        for exit_, column in enumerate(paper.EXITS, start=1):
            made.append((Cell(setting.name, column, it.name, exit_, figures.get(column)), it))
    more = (
        "The paper's FLOP columns are twice its parameters, without the reuse of weights over positions; ours are true "
        "counts of multiply-adds, so that only parameters can be compared.",
        "The paper's ResNet-101 has 21 blocks in layer3 on CIFAR and extra projections; ours is the true one.",
    )
    return _experiment("table8", "complexity", made, scale, more, unit="parameters, M")


def _descent(name: str, scale: Scale, setting: Setting) -> Experiment:
    made = []
    for groups in (2, 4):
        it = run(setting, "lct", groups)
        made += [(Cell(setting.name, f"LCT_n{groups - 1}, group {i}", it.name, i), it) for i in range(1, groups)]
    return _experiment(name, "descent", made, scale, unit="smallest sigma, (16)")


def _time(name: str, scale: Scale, chosen: Sequence[Setting], columns: dict[str, tuple[str, int]]) -> Experiment:
    made = []
    for setting in chosen:
        for column, (method, groups) in columns.items():
            it = run(setting, method, groups, settings.timed(scale), "timed", workers=settings.workers(scale, groups))
            saved = paper.TIME_SAVED.get(setting.of_paper, {}).get(column)
            made.append((Cell(setting.name, column, it.name, paper=None if saved is None else 1 - saved / 100), it))
    more = ("Time is that of the training loop, validation left out; run these one at a time (--jobs 1).",)
    return _experiment(name, "time", made, scale, more, unit="training time, as a share of backprop's")


TIMED = {"BP": ("bp", 1), "LCT_n1": ("lct", 2), "LCT_n3": ("lct", 4)}
PIPELINED = {"BP": ("bp", 1), "GPipe, 2 workers": ("gpipe", 2), "LCT_n1": ("lct", 2), "GPipe, 4 workers": ("gpipe", 4),
             "LCT_n3": ("lct", 4)}  # fmt: skip


def _critics(scale: Scale) -> Experiment:
    setting = settings.short(scale)
    bp = run(setting, "bp")
    made: list[tuple[Cell, Run]] = []
    for words, (tag, given) in settings.CRITICS.items():
        it = run(setting, "lct", 4, given, tag)
        made += [(Cell(words, column, it.name, exit_), it) for exit_, column in enumerate(paper.EXITS, start=1)]
    made.append((Cell("backprop", "Main", bp.name), bp))
    more = (
        f"{setting.name}, {'4 epochs, ' if scale == 'small' else ''}N = 4. The paper has no such table; its own rule "
        f"is (5) per sample with the paper's critics.",
        "Where a row does not say otherwise, residual critics step as the groups do, by SGD with a rate up to 0.1, "
        "slim and the paper's by Adam, 1e-3.",
    )
    return _experiment("critics", "quality", made, scale, more)


MADE: dict[str, Callable[[Scale], Experiment]] = {
    "table1": _table1,
    "table2": _table2,
    "table3": _table3,
    "table4": _table4,
    "table5": _table5,
    "table6": _table6,
    "table7": _table7,
    "table8": _table8,
    "fig3": lambda scale: _descent("fig3", scale, settings.images(scale)[0]),
    "fig4": lambda scale: _descent("fig4", scale, settings.deepest_text(scale)),
    "fig5": lambda scale: _time("fig5", scale, settings.images(scale), TIMED),
    "fig6": lambda scale: _time("fig6", scale, [settings.deepest_text(scale)], TIMED),
    "fig7": lambda scale: _time("fig7", scale, settings.images(scale)[-1:], PIPELINED),
    "critics": _critics,
}
