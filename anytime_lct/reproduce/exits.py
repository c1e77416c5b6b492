"""Accuracy over multiply-adds: what exits cost and give, beside everything that a user could take instead.

One recipe for all methods. Exits are cut for shares of 25, 50 and 75% of a network, which the rows share:

    LCT                     one training, four exits; with the critics' own loss, and with the paper's rule (5)
    joint losses            the same network and critics, all exits' losses added, by backprop
    post-hoc                critics by distillation behind the frozen network that backprop has trained
    alone                   every exit's network trained by itself
    narrower                the network made narrower, so that it costs about as much
    confidence rules        on top of LCT and of joint losses: samples stop where they are confident, at a mean budget
    FractalNet              its columns, which answer alone, behind one training by backprop with drop-path
"""

from __future__ import annotations

from typing import Any

from anytime_lct.reproduce import settings
from anytime_lct.reproduce.making import make_experiment, make_run
from anytime_lct.reproduce.plan import Cell, Experiment, Run, Scale, Tables, merged
from anytime_lct.reproduce.settings import Setting

COLUMNS = ("Exit 1", "Exit 2", "Exit 3", "Main")
SGD: dict[str, Any] = {"name": "sgd", "lr": 0.4, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-3}
RECIPE: Tables = {
    "data": {"batch_size": 256, "workers": 0},
    "train": {"epochs": 20, "precision": settings.fast_precision(), "channels_last": True, "clip_norm": 0.0},
    "groups": SGD,
    "critics": SGD,
    "groups_schedule": {"name": "one-cycle"},
    "rule": {"critic_loss": "cross-entropy"},
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "resnet14": ("ResNet-14", {"name": "resnet", "depth": 14, "width": 16}),
    "earlywide": ("EarlyWide", {"name": "earlywide"}),
    "msdnet": ("MSDNet", {"name": "msdnet"}),
}
FRACTAL: dict[str, Any] = {"name": "fractalnet"}
RULES = (0.4, 0.6, 0.8)  # mean budgets of the confidence rules, as shares of the main network's multiply-adds
NARROW = (8, 11, 14)  # widths instead of 16: about 25, 50 and 75% of the multiply-adds
LONG: Tables = {"train": {"epochs": 160}}


def exits(scale: Scale) -> Experiment:
    """Return the experiment: 20 epochs at the small scale, 160 at the paper's."""
    pairs: list[tuple[Cell, Run]] = []
    for data_key, (data_name, data) in settings.SMALL_DATA.items():
        for key, (name, model) in NETWORKS.items():
            tables = merged(RECIPE, data, {"model": model}, LONG if scale == "paper" else {})
            setting = Setting(f"exits{'-long' * (scale == 'paper')}-{data_key}-{key}", f"{name}, {data_name}", tables)
            pairs += _network(setting, narrow=key != "msdnet")
        key = f"exits{'-long' * (scale == 'paper')}-{data_key}-fractalnet"
        tables = merged(RECIPE, data, {"model": FRACTAL}, LONG if scale == "paper" else {})
        pairs += _columns(Setting(key, f"FractalNet, {data_name}", tables))
    differences = (
        f"The paper has no such table. Every row has {160 if scale == 'paper' else 20} epochs of minibatches of 256: "
        "SGD with Nesterov's momentum, one cycle up to a rate of 0.4, weight decay 1e-3, crops and flips.",
        "CIFAR-10 (JPEG) is re-encoded with loss: its figures are comparable among rows, not with published ones.",
        "A tenth of the training images is held out for validation; test is looked at once, at the end.",
        "Post-hoc exits take a second training of the critics, as long as the first.",
        "MSDNet is cut after its blocks and has its own classifiers. FractalNet is not cut: its exits are its columns.",
        "Confidence rules are searched on validation, for mean budgets of 40, 60 and 80% of the main network.",
    )
    return make_experiment("exits", "exits", pairs, scale, differences, with_general=False,
                           unit="test accuracy, %, at the exit's multiply-adds")  # fmt: skip


def _network(setting: Setting, *, narrow: bool) -> list[tuple[Cell, Run]]:
    cut: Tables = {"cut": {"by": "shares"}}
    bp = make_run(setting, "bp")
    family = {
        "LCT": make_run(setting, "lct", 4, cut, rules=RULES),
        "LCT, the paper's rule (5)": make_run(setting, "lct", 4, merged(cut, settings.PAPER_LOSS), "paper-rule"),
        "joint losses": make_run(setting, "joint", 4, cut, rules=RULES),
        "post-hoc exits": make_run(
            setting, "posthoc", 4, merged(cut, {"posthoc": {"loss": "distillation"}}), after=bp.name
        ),
    }
    pairs = [
        (Cell(f"{label}, {setting.name}", column, run.name, exit_), run)
        for label, run in family.items()
        for exit_, column in enumerate(COLUMNS, start=1)
    ]
    pairs += [
        (Cell(f"{label}, confidence rules, {setting.name}", f"Mean {share:.0%}", run.name, rule=share), run)
        for label, run in family.items()
        for share in run.rules
    ]
    for exit_, column in enumerate(COLUMNS[:-1], start=1):
        run = make_run(setting, "alone", 4, merged(cut, {"train": {"exit": exit_}}), f"exit{exit_}")
        pairs.append((Cell(f"alone, {setting.name}", column, run.name, 1), run))
        if narrow:
            run = make_run(setting, "bp", 1, {"model": {"width": NARROW[exit_ - 1]}}, f"width{NARROW[exit_ - 1]}")
            pairs.append((Cell(f"narrower, {setting.name}", column, run.name), run))
    pairs.append((Cell(f"alone, {setting.name}", COLUMNS[-1], bp.name), bp))
    return pairs


def _columns(setting: Setting) -> list[tuple[Cell, Run]]:
    run = make_run(setting, "bp")
    row = f"columns, {setting.name}"
    pairs = [(Cell(row, column, run.name, path=path), run) for path, column in enumerate(COLUMNS[:-1], start=1)]
    return [*pairs, (Cell(row, COLUMNS[-1], run.name), run)]
