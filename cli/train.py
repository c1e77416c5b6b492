"""`anytime-lct train`: train a network by local critic training into a run folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anytime_lct.cli.screen import print_json

if TYPE_CHECKING:
    from anytime_lct.recipes.recipe import Recipe
    from anytime_lct.run_folder.paths import Changes

DATA = (
    "Data set: digits, pydoc, mnist, fashion-mnist, cifar10, cifar100, imagefolder, text, hf:PATH, wds:SHARDS, "
    "npz:FILE, or path/to/file.py:FACTORY."
)
MODEL = (
    "Network: mlp, resnet, resnet20/32/56, resnet50/101/152/182, earlywide, msdnet, msdnet-imagenet, "
    "fractalnet, lstm, lstm-classifier, torchvision:NAME, timm:NAME, or path/to/file.py:FACTORY."
)
BUDGETS = (
    "One exit for each of these budgets of multiply-adds, as deep as fits with its critic: e.g. 20M,40M, or "
    "20%,40%,70% of the main network's."
)
METHOD = (
    "lct, or an alternative: bp (with --replicas: DistributedDataParallel), joint (the losses of all exits "
    "by backprop), posthoc (exits behind the frozen network of --weights), alone (the sub-network train.exit by "
    "backprop), dni, admm, gpipe, 1f1b."
)
GROUPS = "Number of layer groups N; default: 4, or as many as the network can be cut into."
WEIGHTS = (
    "Weights that training starts from: a safetensors file or torch state dict, a run folder, or those that "
    "torchvision or timm ship."
)
WORKERS = "Processes that share the layer groups, each with neighbouring ones; at most N."
SWEEP = (
    "Train many runs and search this key: a range (log:1e-4..1e-1, 0.8..0.99, 2..4) or a list (slim|residual); may be "
    "repeated."
)
OBJECTIVE = "With --sweep: what is best on validation: main, exit:N, or the area under accuracy over multiply-adds."
LOG = "Logger: tensorboard (the default), jsonl, mlflow or wandb; may be repeated."
SET = "Any other recipe key, e.g. groups.lr=0.05 or rule.critic_loss=paper; may be repeated."


def train(
    recipe: Annotated[str | None, typer.Option(help="Recipe: a TOML file or the name of a shipped one.")] = None,
    data: Annotated[str | None, typer.Option(help=DATA)] = None,
    data_root: Annotated[str | None, typer.Option(help="Folder that holds the data set.")] = None,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    groups: Annotated[int | None, typer.Option(help=GROUPS)] = None,
    budget_flops: Annotated[str | None, typer.Option(metavar="B,B,..", help=BUDGETS)] = None,
    method: Annotated[str | None, typer.Option(help=METHOD)] = None,
    weights: Annotated[str | None, typer.Option(metavar="FILE|RUN|default", help=WEIGHTS)] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, data order and validation split.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help=SET)] = None,
    log: Annotated[list[str] | None, typer.Option(metavar="NAME", help=LOG)] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run folder to write; default: runs/DATA-MODEL-SEED.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --run-dir; with more --epochs, extend it.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help=WORKERS)] = 1,
    replicas: Annotated[
        int, typer.Option(min=1, help="Copies of all workers, each with its share of every minibatch.")
    ] = 1,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="With several workers: how often to start again when one is lost.")
    ] = 0,
    sweep: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUES", help=SWEEP)] = None,
    trials: Annotated[int, typer.Option(help="With --sweep: the number of runs, earlier ones included.")] = 20,
    objective: Annotated[str, typer.Option(metavar="main|exit:N|area", help=OBJECTIVE)] = "main",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Train a network by local critic training; without arguments, a small one on the built-in digits.

    With --workers, processes on this machine train neighbouring layer groups side by side, with the result of one;
    under torchrun each process gets its rank from the environment.

    Ctrl-C writes a checkpoint first; a run continued by --resume ends with the weights of an uninterrupted one. With
    --epochs, --resume extends a run to this many epochs in total; with --data-root or --model, the run's data or
    network are taken from where they are now.

    With --sweep, many runs are trained in a folder, with settings that Optuna draws; the same command goes on where it
    was interrupted, and with more --trials.

    Example: anytime-lct train --data fashion-mnist --model resnet20 --epochs 10
    """
    from anytime_lct.cli.progress import descent, descent_line
    from anytime_lct.errors import RecipeError
    from anytime_lct.recipes import reading
    from anytime_lct.run_folder import folder as run_folder
    from anytime_lct.run_folder.paths import Changes
    from anytime_lct.verbs.train import launch_workers, prepare, starts_processes

    flags = {
        "data.name": data, "data.root": data_root, "model.name": model, "cut.groups": groups,
        "cut.shares": None if budget_flops is None else shares_of(budget_flops), "train.method": method,
        "train.weights": weights, "train.epochs": epochs, "train.seed": seed, "train.log": log or None,
    }  # fmt: skip
    overrides: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    overrides = with_settings(overrides, settings)
    changes = Changes(epochs, data_root, model) if resume else Changes()
    if not resume:
        run_recipe = reading.read(recipe, overrides)
    elif run_dir is None:
        raise RecipeError("Expected --run-dir with --resume, got none; name the run folder to continue.")
    elif recipe or overrides.keys() - {"train.epochs", "data.root", "model.name"}:
        raise RecipeError(
            "Expected --resume with --run-dir, and at most --epochs, --data-root and --model, as a run keeps its own "
            "recipe; leave the other options out."
        )
    else:
        run_recipe = run_folder.read(run_dir, changes)[0]
    folder = run_dir or default_folder(run_recipe)
    if sweep:
        from anytime_lct.cli.sweeping import sweep_runs

        if resume or workers * replicas > 1:
            raise RecipeError(
                "Expected one process and no --resume with --sweep, whose same command goes on; leave --workers, "
                "--replicas and --resume out."
            )
        folder = run_dir or folder.with_name(f"{folder.name}-sweep")
        sweep_runs(run_recipe, sweep, folder, trials=trials, objective=objective, as_json=as_json)
        return
    if starts_processes(workers, replicas):
        checked = prepare(run_recipe, (workers, replicas), resume=resume)
        options = ["--json"] if as_json else []
        launch_workers(
            checked, folder, (workers, replicas), max_restarts, resume=resume, changes=changes, options=options
        )
        return
    if max_restarts:
        raise RecipeError(
            "Expected --max-restarts where this command starts several processes, by --workers or --replicas, got none "
            "to start again; leave it out."
        )
    last = run(run_recipe, folder, resume=resume, changes=changes, quiet=as_json, size=(workers, replicas))
    if not _leads():
        return
    if as_json:
        import json

        summary = None if last is None else last.as_json(run_folder.read(folder)[1].metric)
        print_json(json.dumps({"run": str(folder), "last_epoch": summary, "descent": descent(folder)}))
    else:
        if tracked := descent(folder):
            typer.echo(descent_line(tracked))
        typer.echo(f"The run is in {folder}. Next: anytime-lct analyze {folder}")


def run(
    recipe: Recipe,
    folder: Path,
    *,
    resume: bool = False,
    changes: Changes | None = None,
    quiet: bool = False,
    size: tuple[int, int] = (1, 1),
) -> Any:
    """Train and show the progress; return the last epoch, or None where the run was complete."""
    from anytime_lct.cli.progress import progress
    from anytime_lct.errors import StoppedError
    from anytime_lct.run_folder.paths import Changes
    from anytime_lct.training.memory import keep_freed_memory
    from anytime_lct.verbs.train import train as training

    keep_freed_memory()
    try:
        with progress(quiet=quiet or not _leads()) as report:
            workers, replicas = size
            changes = changes or Changes()
            return training(
                recipe, folder, resume=resume, changes=changes, workers=workers, replicas=replicas, report=report
            )
    except KeyboardInterrupt:
        if not _leads() or not any(folder.glob("checkpoints/*")):
            raise
        raise StoppedError(
            f"Stopped; a checkpoint is written. Continue with: anytime-lct train --resume --run-dir {folder}"
        ) from None


def default_folder(recipe: Recipe) -> Path:
    """Return the default run folder of a recipe."""
    from anytime_lct.data.locations import shown
    from anytime_lct.models.networks import AUTO

    parts = [shown(recipe.data.name), *([recipe.model.name] if recipe.model.name != AUTO else [])]
    names = (re.sub(r"[^\w.]+", "-", name).strip("-") for name in parts)
    return Path("runs") / "-".join([*names, str(recipe.train.seed)])


def with_settings(overrides: dict[str, Any], settings: list[str] | None) -> dict[str, Any]:
    """Add the values of --set to those of flags; raises RecipeError for a key that has two."""
    from anytime_lct.errors import RecipeError
    from anytime_lct.recipes import reading

    merged = dict(overrides)
    for key, value in (reading.assignment(text) for text in settings or []):
        if merged.setdefault(key, value) != value:
            source = f"{merged[key]!r} by its own flag" if key in overrides else f"{merged[key]!r} by another --set"
            raise RecipeError(f"Expected one value for {key}, got {value!r} by --set and {source}; leave one out.")
    return merged


def shares_of(text: str) -> list[float]:
    """Read the budgets of exits, with commas, as `cut.shares`; raises RecipeError."""
    from anytime_lct.errors import BudgetError, RecipeError
    from anytime_lct.exits.budget import Share, parse_flops

    try:
        amounts = [parse_flops(part) for part in text.split(",")]
    except BudgetError:
        raise RecipeError(
            f"Expected budgets of the exits with commas, like 20%,40%,70% of the main network's multiply-adds, or "
            f"20M,30M, got '{text}'."
        ) from None
    return [amount.of_main if isinstance(amount, Share) else amount for amount in amounts]


def _leads() -> bool:
    """Whether this process is the only one, or the first, of a run."""
    return int(os.environ.get("RANK", "0")) == 0
