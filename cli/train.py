"""`anytime-lct train`: train a network by local critic training into a run folder."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from anytime_lct.training.events import Epoch


def train(
    recipe: Annotated[str | None, typer.Option(help="Recipe: a TOML file or the name of a shipped one.")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="Data set: digits, pydoc, mnist, fashion-mnist, cifar10, cifar100, imagefolder, text."),
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="Folder that holds the data set.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Network: mlp, resnet, resnet20/32/56, resnet50/101/152/182, lstm, torchvision:NAME, timm:NAME, or "
            "path/to/file.py:FACTORY."
        ),
    ] = None,
    groups: Annotated[int | None, typer.Option(help="Number of layer groups N.")] = None,
    place_exits: Annotated[
        str | None,
        typer.Option(help="Where to cut: auto (by --budget-flops), layers, balanced, measured or memory."),
    ] = None,
    budget_flops: Annotated[
        str | None,
        typer.Option(
            metavar="SHARES",
            help="One exit for each of these shares of the main network's multiply-adds, e.g. 0.2,0.4,0.7: as deep as "
            "fits, its critic included.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training data.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of weights, data order and validation split.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Run folder to write; default: runs/DATA-MODEL-SEED.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other recipe key, e.g. groups.lr=0.05; may be repeated."),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Let the data set, or default weights, be downloaded.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --run-dir.")] = False,
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that share the layer groups, each a run of neighbours; at most N.")
    ] = 1,
    replicas: Annotated[
        int, typer.Option(min=1, help="Copies of all workers, each with its share of every minibatch.")
    ] = 1,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="With several workers: start again so often when one is lost.")
    ] = 0,
    place: Annotated[
        str | None,
        typer.Option(
            help="What is evened out between workers, and between groups where the recipe does not say: balanced "
            "(multiply-adds, the default), measured (seconds, on this machine) or memory."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="lct, or what to compare it with: bp (with --replicas: DistributedDataParallel), joint (the losses of "
            "all exits by backprop), posthoc (exits behind the frozen network of --weights), alone (sub-network --exit "
            "by backprop), dni, admm, gpipe, 1f1b."
        ),
    ] = None,
    critic_loss: Annotated[
        str | None,
        typer.Option(
            help="What critics minimise: paper (equation (5)), mixed (with their own loss), cross-entropy; with "
            "--freeze-main also distillation from the main output."
        ),
    ] = None,
    exit_: Annotated[int | None, typer.Option("--exit", help="With --method alone: the sub-network, from 1.")] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|RUN|default",
            help="Weights that training starts from: a safetensors file or torch state dict, a run folder, or those "
            "that torchvision or timm ship.",
        ),
    ] = None,
    freeze_main: Annotated[
        bool, typer.Option("--freeze-main", help="Fit exits alone; the main network of --weights stays as it is.")
    ] = False,
    track_descent: Annotated[
        int | None,
        typer.Option(
            metavar="EVERY",
            help="Every so many minibatches, measure each group's sufficient-descent ratio (16) and cosine against "
            "backprop, into descent.jsonl; changes no weight.",
        ),
    ] = None,
    wire: Annotated[
        str | None, typer.Option(help="What travels between workers: exact, or bf16 for half the bytes.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Train a network by local critic training; without arguments, a small one on the built-in digits.

    With --workers, processes on this machine train neighbouring layer groups side by side, to the weights of one; under
    torchrun the same command takes its place from the environment.

    Ctrl-C writes a checkpoint first; --resume goes on to the very weights of an undisturbed run.

    Example: anytime-lct train --data fashion-mnist --model resnet20 --groups 4 --epochs 10 --run-dir runs/fashion
    """
    from anytime_lct.cli.progress import descent, descent_line
    from anytime_lct.errors import RecipeError
    from anytime_lct.recipes import reading as recipes

    flags = {
        "data.name": data, "data.root": data_root, "data.download": download or None, "model.name": model,
        "cut.groups": groups, "train.epochs": epochs, "train.seed": seed,
        "train.wire": wire, "train.exit": exit_, "train.weights": weights,
        "train.track_descent": track_descent,
    }  # fmt: skip
    if freeze_main and method not in (None, "posthoc"):
        raise RecipeError(f"Expected --freeze-main without --method, got --method {method}; leave one of them out.")
    flags["train.method"] = "posthoc" if freeze_main else method
    flags |= _places(place_exits, budget_flops)
    overrides: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    overrides |= dict(recipes.assignment(text) for text in settings or [])
    if place is not None and place not in PLACES:
        raise RecipeError(f"Expected --place to be one of {', '.join(PLACES)}, got '{place}'.")
    if resume:
        if run_dir is None:
            raise RecipeError("Expected --run-dir with --resume, got none; name the run folder to go on with.")
        if overrides or recipe or critic_loss:
            raise RecipeError(
                "Expected --resume with --run-dir alone, since a run goes on with its own recipe; leave the rest out."
            )
        from anytime_lct.run_folder import folder as run_folder

        chosen = run_folder.read(run_dir)[0]
    else:
        otherwise = {"cut.by": place} if place else {}
        chosen = recipes.read(recipe, overrides, otherwise)
        if critic_loss is not None:
            key = "posthoc.loss" if chosen.train.method == "posthoc" else "rule.critic_loss"
            chosen = recipes.read(recipe, {key: critic_loss, **overrides}, otherwise)
        if chosen.train.weights == "default":
            from anytime_lct.run_folder import start as pretrained

            chosen = pretrained.with_statistics(chosen)
    network = re.sub(r"[^\w.]+", "-", chosen.model.name)
    folder = run_dir or Path("runs") / f"{chosen.data.name}-{network}-{chosen.train.seed}"
    if workers * replicas > 1 and not _is_worker():
        _launch(chosen, folder, (workers, replicas), max_restarts, place, resume=resume, as_json=as_json)
        return
    last = run(chosen, folder, resume=resume, quiet=as_json, size=(workers, replicas), place=place)
    if workers * replicas > 1 and int(os.environ["RANK"]) > 0:
        return
    if as_json:
        import json

        summary = None if last is None else last.as_json(metric_of(chosen.data.name))
        typer.echo(json.dumps({"run": str(folder), "last_epoch": summary, "descent": descent(folder)}))
    else:
        if tracked := descent(folder):
            typer.echo(descent_line(tracked))
        typer.echo(f"The run is in {folder}. Next: anytime-lct analyze {folder}")


PLACES = ("balanced", "measured", "memory")


def _places(place_exits: str | None, budget_flops: str | None) -> dict[str, Any]:
    """Return what --place-exits and --budget-flops say of the recipe's cut."""
    from anytime_lct.errors import RecipeError

    if place_exits not in (None, "auto", "layers", *PLACES):
        raise RecipeError(f"Expected --place-exits auto, layers, {', '.join(PLACES)}, got '{place_exits}'.")
    if place_exits == "auto" and budget_flops is None:
        raise RecipeError("Expected --budget-flops with --place-exits auto, for example 0.2,0.4,0.7; got none.")
    if place_exits not in (None, "auto") and budget_flops is not None:
        raise RecipeError(f"Expected --budget-flops with --place-exits auto alone, got {place_exits}; leave one out.")
    if budget_flops is None:
        return {"cut.by": place_exits}
    return {"cut.shares": shares_of(budget_flops)}


def shares_of(text: str) -> list[float]:
    """Read shares with commas; raises RecipeError."""
    from anytime_lct.errors import RecipeError

    try:
        return [float(share) for share in text.split(",")]
    except ValueError:
        raise RecipeError(
            f"Expected shares of the main network's multiply-adds with commas, like 0.2,0.4,0.7, got '{text}'."
        ) from None


def _is_worker() -> bool:
    """Whether torchrun, or this command's own launcher, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _launch(
    recipe: Any,
    folder: Path,
    size: tuple[int, int],
    max_restarts: int,
    place: str | None,
    *,
    resume: bool,
    as_json: bool,
) -> None:
    """Check what can be checked beforehand, then run this command in every worker."""
    import tempfile

    from anytime_lct.errors import PartitionError
    from anytime_lct.recipes import reading as recipes
    from anytime_lct.training.methods.table import expect_processes
    from anytime_lct.training.processes.launch import launch
    from anytime_lct.training.tracking import expect_one_process

    workers, replicas = size
    expect_processes(recipe.train.method, workers, replicas)
    expect_one_process(recipe, workers, replicas)
    if workers > recipe.cut.groups:
        raise PartitionError(
            f"Expected at most as many workers as layer groups, {recipe.cut.groups}, got {workers}; lower --workers or "
            f"raise --groups."
        )
    _expect_room(folder, resume)
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch) / "recipe.toml"
        recipes.write(recipe, written)
        told = ["--resume"] if resume else ["--recipe", str(written)]
        told += ["--run-dir", str(folder), "--workers", str(workers), "--replicas", str(replicas)]
        told += ["--place", place] if place else []
        launch(["train", *told, *(["--json"] if as_json else [])], workers, replicas, max_restarts)


def _expect_room(folder: Path, resume: bool) -> None:
    from anytime_lct.errors import CheckpointError
    from anytime_lct.run_folder import folder as run_folder

    if not resume and (folder / run_folder.RECIPE).exists():
        raise CheckpointError(
            f"The folder '{folder}' holds a run already; go on with it by --resume --run-dir {folder}, or choose "
            f"another --run-dir."
        )


def run(
    recipe: Any,
    folder: Path,
    *,
    resume: bool = False,
    quiet: bool = False,
    size: tuple[int, int] = (1, 1),
    place: Any = None,
) -> Epoch | None:
    """Train and show the progress; return the last epoch, or None where nothing was left to do."""
    from anytime_lct.cli.progress import show
    from anytime_lct.data import datasets
    from anytime_lct.training.memory import keep_freed_memory
    from anytime_lct.training.methods.table import METHODS, expect_processes
    from anytime_lct.training.processes.team import join
    from anytime_lct.training.run import device_of
    from anytime_lct.training.run import train as training

    expect_processes(recipe.train.method, *size)
    keep_freed_memory()
    method = {"method": METHODS[recipe.train.method]} if recipe.train.method in METHODS else {}
    team = None
    if size != (1, 1):
        team = join(*size, device_of(recipe.train.device), recipe.train.wire)
        quiet = quiet or not team.leads
    if team is None or not team.restarted:
        _expect_room(folder, resume or (team is not None and not team.leads))
    events = training(recipe, datasets.from_recipe(recipe), folder, resume=resume, team=team, place=place, **method)
    try:
        return show(events, metric_of(recipe.data.name), quiet=quiet)
    except KeyboardInterrupt:
        if team is None or team.leads:
            typer.echo(
                f"Stopped; a checkpoint is written. Go on with: anytime-lct train --resume --run-dir {folder}", err=True
            )
        raise


def metric_of(data: str) -> str:
    """Name the metric of a data set."""
    from anytime_lct.recipes.recipe import TEXT

    return "bpc" if data in TEXT else "accuracy"
