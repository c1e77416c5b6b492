"""`anytime-lct quickstart`: train, analyze, export and predict once, on the built-in digits."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anytime_lct.cli.screen import print_json

if TYPE_CHECKING:
    from anytime_lct.exits.bundle import Bundle

# A network so narrow, behind critics so small, that a deeper exit knows more; a fifth of the digits tells them apart.
SETTINGS: dict[str, Any] = {
    "model.width": 8,
    "cut.shares": [0.2, 0.4, 0.55],
    "critic.share": 0.1,
    "data.augment": "none",
    "data.validation": 0.2,
    "train.epochs": 20,
}


def quickstart(
    folder: Annotated[Path, typer.Option(help="Folder to write the run and the bundle into.")] = Path("quickstart"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the 1,150 training digits.")] = SETTINGS[
        "train.epochs"
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace the files of an earlier quickstart.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Train, analyze, export and predict on the built-in digits, within a minute on two cores.

    A small residual network is cut into 4 layer groups; the test digits are answered from the exported bundle at
    four budgets.

    Example: anytime-lct quickstart
    """
    import json
    import shlex

    import torch

    from anytime_lct.cli.analyze import NOTE, SPLIT_NOTES, table
    from anytime_lct.cli.export import steps
    from anytime_lct.cli.screen import say, screen
    from anytime_lct.cli.train import run
    from anytime_lct.recipes import reading
    from anytime_lct.verbs import analyze, export

    run_dir, bundle_dir = folder / "run", folder / "bundle"
    _expect_no_quickstart(folder, run_dir, bundle_dir, force)
    console = screen(quiet=as_json)
    settings = SETTINGS | {"train.epochs": epochs}
    recipe = reading.read(None, settings)
    torch.set_num_threads(1)  # more wait for one another longer than such small operations take
    words = [f"--set {shlex.quote(f'{key}={value}'.replace(' ', ''))}" for key, value in settings.items()]
    say(console, f"Training on the digits: anytime-lct train --run-dir {run_dir} {' '.join(words)}")
    run(recipe, run_dir, quiet=as_json)
    say(console, f"Measuring every exit: anytime-lct analyze {run_dir}")
    profile = analyze(run_dir)
    say(console, f"Exporting: anytime-lct export {run_dir} --out {bundle_dir}")
    with steps("exporting", quiet=as_json) as report:
        bundle = export(run_dir, bundle_dir, report=report)
    answers = answer(bundle, recipe)
    if as_json:
        print_json(json.dumps({"folder": str(folder), "profile": profile.model_dump(mode="json"), "answers": answers}))
        return
    console.print(table(profile))
    say(console, NOTE + SPLIT_NOTES[profile.split], "dim")
    console.print(_answers_table(answers))
    say(
        console,
        f"The picture is {run_dir / 'exits.png'}.\n"
        f"Next: anytime-lct serve {bundle_dir}\n"
        f"and draw a digit on its page, http://127.0.0.1:8000/",
    )


def answer(bundle: Bundle, recipe: Any) -> list[dict[str, float | int]]:
    """Answer the test images by onnxruntime at the smallest budget of each exit; return a row per budget."""
    from anytime_lct.data import datasets
    from anytime_lct.exits.budget import Budget
    from anytime_lct.runtime.session import AnytimeSession

    batches = [(x.numpy(), y.numpy()) for x, y in datasets.from_recipe(recipe).batches("test")]
    session = AnytimeSession(bundle)
    rows: list[dict[str, float | int]] = []
    for flops in sorted(bundle.profile.cost(i).flops for i in bundle.manifest.served):
        correct, samples, exits = 0, 0, set()
        for x, y in batches:
            prediction = session.run(x, budget=Budget(flops=flops))
            correct, samples = correct + int((prediction.classes == y).sum()), samples + len(y)
            exits.add(prediction.exit)
        rows.append({"budget_flops": flops, "exit": exits.pop(), "accuracy": correct / samples})
    return rows


def _answers_table(answers: list[dict[str, float | int]]) -> Any:
    from anytime_lct.cli.screen import grid
    from anytime_lct.exits.budget import show_count

    rows = [[show_count(row["budget_flops"]), str(row["exit"]), f"{100 * row['accuracy']:.2f}%"] for row in answers]
    columns = ("budget, FLOPs", "exit that answers", "accuracy")
    return grid(columns, rows, title="Test digits, answered by onnxruntime")


def _expect_no_quickstart(folder: Path, run_dir: Path, bundle_dir: Path, force: bool) -> None:
    """Raise ExportError where an earlier quickstart has files, or with `force` remove them, and nothing else."""
    import shutil

    from anytime_lct.errors import ExportError

    old = [path for path in (run_dir, bundle_dir) if path.exists()]
    if old and not force:
        raise ExportError(
            f"The folder '{folder}' holds an earlier quickstart; replace it with --force or name another --folder."
        )
    try:
        for path in old:
            shutil.rmtree(path)
    except OSError as error:
        raise ExportError(
            f"Could not replace the quickstart in '{folder}': {error.strerror or error}; name another --folder."
        ) from None
