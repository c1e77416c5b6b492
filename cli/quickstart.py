"""`anytime-lct quickstart`: the whole way once on the built-in digits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from anytime_lct.exits.bundle import Bundle


def quickstart(
    folder: Annotated[Path, typer.Option(help="Folder to write the run and the bundle into.")] = Path("quickstart"),
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the 1,293 training digits; default: the recipe's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what an earlier quickstart left there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Train, analyze, export and answer, on the built-in digits, in about a minute.

    A small residual network is cut into 4 layer groups; the test digits are answered from the exported bundle at
    several budgets.

    Example: anytime-lct quickstart
    """
    import json

    from anytime_lct.cli.analyze import CHOSEN, NOTE, table
    from anytime_lct.cli.export import steps
    from anytime_lct.cli.screen import screen
    from anytime_lct.cli.train import run
    from anytime_lct.recipes import reading as recipes
    from anytime_lct.verbs import analyze, export

    run_dir, bundle_dir = folder / "run", folder / "bundle"
    _make_way(folder, run_dir, bundle_dir, force)
    console = screen(quiet=as_json)
    recipe = recipes.read(None, {} if epochs is None else {"train.epochs": epochs})
    console.print(f"Training on the digits: anytime-lct train --run-dir {run_dir}", highlight=False)
    run(recipe, run_dir, quiet=as_json)
    console.print(f"Measuring every exit: anytime-lct analyze {run_dir}", highlight=False)
    profile = analyze(run_dir)
    console.print(f"Exporting: anytime-lct export {run_dir} --out {bundle_dir}", highlight=False)
    with steps("exporting", quiet=as_json) as report:
        bundle = export(run_dir, bundle_dir, report=report)
    answered = answer(bundle, recipe)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "profile": profile.model_dump(mode="json"), "answers": answered}))
        return
    console.print(table(profile))
    console.print(NOTE + CHOSEN[profile.split], highlight=False, style="dim", soft_wrap=True)
    console.print(_answers_table(answered))
    console.print(
        f"The picture is {run_dir / 'exits.png'}. Next: anytime-lct select {bundle_dir} --max-drop 0.5",
        highlight=False,
        soft_wrap=True,
    )


def answer(bundle: Bundle, recipe: Any) -> list[dict[str, float | int]]:
    """Answer the test images by onnxruntime at a budget that just lets each exit in; return what came of each."""
    from anytime_lct.data import datasets
    from anytime_lct.exits.budget import Budget
    from anytime_lct.runtime.session import AnytimeSession

    batches = [(x.numpy(), y.numpy()) for x, y in datasets.from_recipe(recipe).batches("test")]
    session = AnytimeSession(bundle)
    found = []
    for flops in sorted(bundle.profile.cost(i).flops for i in bundle.manifest.served):
        right, samples, exits = 0, 0, set()
        for x, y in batches:
            given = session.run(x, budget=Budget(flops=flops))
            right, samples = right + int((given.classes == y).sum()), samples + len(y)
            exits.add(given.exit)
        found.append({"budget_flops": flops, "exit": exits.pop(), "accuracy": right / samples})
    return found


def _answers_table(answered: list[dict[str, float | int]]) -> Any:
    from rich.table import Table

    from anytime_lct.exits.budget import show_count

    grid = Table(title="The test digits answered by onnxruntime at four budgets", title_justify="left")
    for name in ("budget, FLOPs", "exit that answers", "accuracy"):
        grid.add_column(name, justify="right")
    for row in answered:
        grid.add_row(show_count(row["budget_flops"]), str(row["exit"]), f"{100 * row['accuracy']:.2f}%")
    return grid


def _make_way(folder: Path, run_dir: Path, bundle_dir: Path, force: bool) -> None:
    """Refuse, or with `force` clear, what an earlier quickstart left; nothing else in the folder is touched."""
    import shutil

    from anytime_lct.errors import ExportError

    left = [path for path in (run_dir, bundle_dir) if path.exists()]
    if left and not force:
        raise ExportError(
            f"The folder '{folder}' holds an earlier quickstart; replace it with --force or name another --folder."
        )
    try:
        for path in left:
            shutil.rmtree(path)
    except OSError as error:
        raise ExportError(
            f"Could not replace the quickstart in '{folder}': {error.strerror or error}; name another --folder."
        ) from None
