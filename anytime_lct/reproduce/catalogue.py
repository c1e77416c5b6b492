"""The tables and figures of the paper by name, at the paper's scale and at one for two CPU cores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from anytime_lct.errors import RecipeError
from anytime_lct.reproduce import exits, paper, settings
from anytime_lct.reproduce.making import make_experiment, make_run
from anytime_lct.reproduce.plan import Cell, Experiment, Run, Scale, Tables, merged
from anytime_lct.reproduce.settings import Setting
from anytime_lct.reproduce.titles import TITLES


def experiment(name: str, scale: Scale) -> Experiment:
    """Return an experiment by name; raises RecipeError for an unknown name.

    >>> experiment("table3", "small").cells[0].paper
    98.05
    """
    if name not in EXPERIMENTS:
        raise RecipeError(f"Expected one of {', '.join(TITLES)}, got '{name}'; see anytime-lct reproduce list.")
    return EXPERIMENTS[name](scale)


def _method_pairs(table: paper.Table, row_settings: Sequence[Setting], columns: Any) -> list[tuple[Cell, Run]]:
    pairs = []
    for setting in row_settings:
        for column, (method, groups) in columns.items():
            figure = table.get(setting.paper_row, {}).get(column)
            run = make_run(setting, method, groups)
            pairs.append((Cell(setting.name, column, run.name, paper=figure), run))
            if method == "dni":
                no_labels = merged(setting.methods.get("dni-no-labels", {}), {"dni": {"labels": False}})
                run = make_run(setting, method, groups, no_labels, "no-labels")
                pairs.append((Cell(setting.name, f"{column}, no labels", run.name, paper=figure), run))
    return pairs


METHODS = {
    "BP": ("bp", 1),
    **{f"DNI_n{n}": ("dni", n + 1) for n in (1, 2, 3)},
    **{f"LCT_n{n}": ("lct", n + 1) for n in (1, 2, 3)},
}


def _table1(scale: Scale) -> Experiment:
    return make_experiment("table1", "quality", _method_pairs(paper.TABLE_1, settings.images(scale), METHODS), scale)


def _table2(scale: Scale) -> Experiment:
    columns = {column: METHODS[column] for column in ("BP", "LCT_n1", "LCT_n2", "LCT_n3")}
    return make_experiment("table2", "quality", _method_pairs(paper.TABLE_2, settings.large(scale), columns), scale)


def _table3(scale: Scale) -> Experiment:
    columns = {"BP": ("bp", 1), "ADMM": ("admm", 1), "DNI_n1": ("dni", 2), "LCT_n1": ("lct", 2)}
    pairs = _method_pairs(paper.TABLE_3, settings.perceptrons(scale), columns)
    for setting in settings.perceptrons(scale):
        run = make_run(setting, "lct", 2, settings.OWN_LOSS, "own")
        pairs.append((Cell(setting.name, "LCT_n1, own loss", run.name), run))
    return make_experiment("table3", "quality", pairs, scale, settings.PERCEPTRON_DIFFERENCES, with_general=False)


def _table4(scale: Scale) -> Experiment:
    columns = {"Joint losses": ("joint", 4), "BP": ("bp", 1)}
    return make_experiment("table4", "quality", _method_pairs(paper.TABLE_4, settings.images(scale), columns), scale)


# Critics of text beside those of the paper's rule, which are linear: label, tag, tables.
TEXT_CRITICS = (("own loss", "own", settings.OWN_LOSS), ("default", "default", settings.TEXT_DEFAULT))


def _table5(scale: Scale) -> Experiment:
    pairs = []
    for corpus, by_layers in settings.texts(scale).items():
        for layers, setting in by_layers.items():
            for method, groups in (("bp", 1), ("lct", layers)):
                row, column = f"{method.upper()}, {corpus}", f"{layers} layers"
                run = make_run(setting, method, groups)
                figure = paper.TABLE_5.get(f"{method.upper()}, {setting.paper_row}", {}).get(column)
                pairs.append((Cell(row, column, run.name, paper=figure), run))
            for label, tag, tables in TEXT_CRITICS:
                run = make_run(setting, "lct", layers, tables, tag)
                pairs.append((Cell(f"LCT, {label}, {corpus}", f"{layers} layers", run.name), run))
    return make_experiment("table5", "quality", pairs, scale, unit="test BPC")


ONE_EPOCH: Tables = {"train": {"epochs": 1, "track_descent": 0}}


def _table6(scale: Scale) -> Experiment:
    pairs = []
    for setting in (*settings.memory(scale), settings.deepest_text(scale)):
        for method, groups, tag in (("bp", 1, "BP"), ("lct", 4, "LCT_n3")):
            row = f"{tag}, {setting.name}"
            run = make_run(setting, method, groups, ONE_EPOCH, "memory", workers=groups)
            figures = paper.TABLE_6.get(f"{tag}, {setting.memory_row}", {})
            for worker in range(1, groups + 1):
                column = f"worker {worker}"
                pairs.append((Cell(row, column, run.name, worker=worker, paper=figures.get(f"GPU {worker}")), run))
    return make_experiment("table6", "memory", pairs, scale, unit="peak memory, MiB")


def _table7(scale: Scale) -> Experiment:
    pairs: list[tuple[Cell, Run]] = []
    for setting in settings.images(scale):
        bp = make_run(setting, "bp")
        for groups in (4,) if scale == "paper" else (4, 2, 3):
            suffix = "" if groups == 4 else f", N = {groups}"
            image_runs = {
                f"LCT_n{groups - 1}": make_run(setting, "lct", groups),
                f"joint losses{suffix}": make_run(setting, "joint", groups),
                f"post-hoc exits behind BP{suffix}": make_run(setting, "posthoc", groups, after=bp.name),
            }
            columns = (*paper.EXITS[: groups - 1], "Main")
            for label, run in image_runs.items():
                figures = paper.TABLE_7.get(f"{label}, {setting.paper_row}", {}) if groups == 4 else {}
                for exit_, column in enumerate(columns, start=1):
                    pairs.append((Cell(f"{label}, {setting.name}", column, run.name, exit_, figures.get(column)), run))
        alone = paper.TABLE_7["alone by BP, preliminary version, CIFAR-10"] if setting.is_cifar10 else {}
        for exit_, column in enumerate(paper.EXITS[:-1], start=1):
            run = make_run(setting, "alone", 4, {"train": {"exit": exit_}}, f"exit{exit_}")
            pairs.append((Cell(f"alone by BP, {setting.name}", column, run.name, 1, alone.get(column)), run))
        pairs.append((Cell(f"alone by BP, {setting.name}", "Main", bp.name, 0), bp))
    for corpus, by_layers in settings.texts(scale).items():
        for layers, setting in by_layers.items():
            text_runs = {f"LCT_n{layers - 1}": make_run(setting, "lct", layers)}
            for label, tag, tables in TEXT_CRITICS:
                text_runs[f"LCT_n{layers - 1}, {label}"] = make_run(setting, "lct", layers, tables, tag)
            for label, run in text_runs.items():
                figures = paper.TABLE_9.get(f"{label}, {setting.paper_row}", {}) if layers == 4 else {}
                for exit_ in range(1, layers + 1):
                    column = paper.EXITS[exit_ - 1] if exit_ < layers else "Main"
                    row = f"{label}, LSTM, {corpus} (BPC)"
                    pairs.append((Cell(row, column, run.name, exit_, figures.get(column)), run))
    return make_experiment("table7", "quality", pairs, scale, unit="test accuracy, % (LSTM: test BPC)")


def _table8(scale: Scale) -> Experiment:
    pairs = []
    for setting in (*settings.complexity(scale), settings.deepest_text("paper")):
        run = make_run(setting, "lct", 4, {"critic": {"kind": setting.paper_critic}}, "paper-critics")
        figures = {**paper.TABLE_8, **paper.TABLE_10}.get(setting.complexity_row, {})
        for exit_, column in enumerate(paper.EXITS, start=1):
            pairs.append((Cell(setting.name, column, run.name, exit_, figures.get(column)), run))
    differences = (
        "The paper's FLOP columns are twice its parameters, without the reuse of weights over positions; ours are true "
        "counts of multiply-adds, so that only parameters can be compared.",
        "The paper's ResNet-101 has 21 blocks in layer3 on CIFAR and extra projections; ours is the true one.",
    )
    return make_experiment("table8", "complexity", pairs, scale, differences, unit="parameters, M")


def _descent(name: str, scale: Scale, setting: Setting) -> Experiment:
    pairs = []
    for groups in (2, 4):
        run = make_run(setting, "lct", groups)
        pairs += [(Cell(setting.name, f"LCT_n{groups - 1}, group {i}", run.name, i), run) for i in range(1, groups)]
    return make_experiment(name, "descent", pairs, scale, unit="smallest sigma, (16)")


def _time(name: str, scale: Scale, row_settings: Sequence[Setting], columns: dict[str, tuple[str, int]]) -> Experiment:
    pairs = []
    for setting in row_settings:
        for column, (method, groups) in columns.items():
            run = make_run(
                setting, method, groups, settings.timing(scale), "timed", workers=settings.workers(scale, groups)
            )
            saved = paper.TIME_SAVED.get(setting.paper_row, {}).get(column)
            pairs.append((Cell(setting.name, column, run.name, paper=None if saved is None else 1 - saved / 100), run))
    differences = ("Time is that of the training loop, validation left out; run these one at a time (--jobs 1).",)
    return make_experiment(name, "time", pairs, scale, differences, unit="training time, as a share of backprop's")


TIMED = {"BP": ("bp", 1), "LCT_n1": ("lct", 2), "LCT_n3": ("lct", 4)}
PIPELINED = {"BP": ("bp", 1), "GPipe, 2 workers": ("gpipe", 2), "LCT_n1": ("lct", 2), "GPipe, 4 workers": ("gpipe", 4),
             "LCT_n3": ("lct", 4)}  # fmt: skip


def _critics(scale: Scale) -> Experiment:
    setting = settings.critic_setting(scale)
    bp = make_run(setting, "bp")
    pairs: list[tuple[Cell, Run]] = []
    for label, (tag, tables) in settings.CRITICS.items():
        run = make_run(setting, "lct", 4, tables, tag)
        pairs += [(Cell(label, column, run.name, exit_), run) for exit_, column in enumerate(paper.EXITS, start=1)]
    pairs.append((Cell("backprop", "Main", bp.name), bp))
    differences = (
        f"{setting.name}, {'4 epochs, ' if scale == 'small' else ''}N = 4. The paper has no such table; its own rule "
        f"is (5) per sample with the paper's critics.",
        "Where a row does not say otherwise, residual critics step as the groups do, by SGD with a rate up to 0.1, "
        "slim and the paper's by Adam, 1e-3.",
    )
    return make_experiment("critics", "quality", pairs, scale, differences)


EXPERIMENTS: dict[str, Callable[[Scale], Experiment]] = {
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
    "exits": exits.exits,
}
