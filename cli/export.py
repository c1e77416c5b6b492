"""`anytime-lct export`: write a trained run as ONNX files that a device can answer with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from anytime_lct.evaluation import Answers
    from anytime_lct.exits.bundle import Bundle
    from anytime_lct.exits.profile import Profile
    from anytime_lct.exits.thresholds import ThresholdTable
    from anytime_lct.export.quantise import Int8
    from anytime_lct.run_folder.folder import Run


def export(
    run: Annotated[Path, typer.Argument(help="Run folder that `train` and `analyze` wrote.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to write.")],
    exits: Annotated[
        str | None, typer.Option(metavar="I,J,..", help="Exits to export, e.g. 1,3; default: all.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="exits|groups", help="Whole exits only, or groups and critics only.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise to int8, and measure every exit again.")] = False,
    calibration_samples: Annotated[int, typer.Option(min=1, help="Training images that set the scales of int8.")] = 512,
    data_root: Annotated[str | None, typer.Option(help="Folder that holds the data set, if it has moved.")] = None,
    single_file: Annotated[
        bool,
        typer.Option("--single-file", help="Write anytime.onnx too: all exits in one file, thresholds as an input."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as one JSON object.")] = False,
) -> None:
    """Export every exit to ONNX: whole sub-models, and layer groups and critics for resumable execution.

    Every exit is compared with torch before the folder gets its name; a difference aborts. Rules for stopping, where
    `thresholds` found some, go into the bundle. With --int8 quality, temperatures and these rules are measured on the
    int8 graphs, which takes the data set.

    Example: anytime-lct export runs/digits-resnet-0 --out bundles/digits
    """
    from anytime_lct.errors import ExportError
    from anytime_lct.exits.budget import show_count
    from anytime_lct.exits.profile import Profile
    from anytime_lct.exits.selector import show_quality

    if only not in (None, "exits", "groups"):
        raise ExportError(f"Expected --only exits or --only groups, got --only {only}.")
    bundle = write(
        run,
        out,
        exits=_numbers(exits),
        only=only,  # type: ignore[arg-type]
        single=single_file,
        calibration_samples=calibration_samples if int8 else None,
        data_root=data_root,
        force=force,
        quiet=as_json,
    )
    if as_json:
        typer.echo(bundle.manifest.model_dump_json())
        return
    manifest = bundle.manifest
    kinds = [f"{len(manifest.exits)} exits", f"{len(manifest.groups)} groups", f"{len(manifest.critics)} critics"]
    if manifest.single is not None:
        kinds.append(manifest.single.name)
    if bundle.thresholds is not None:
        kinds.append(
            f"rules for a mean of {', '.join(show_count(rule.mean_flops) for rule in bundle.thresholds.rules)}"
        )
    difference = f"{manifest.largest_difference:.1e}"
    if int8:
        before = Profile.load(run)
        for i in manifest.served:
            values = [show_quality(before, of.exits[i - 1].test.value) for of in (bundle.profile, before)]
            typer.echo(f"Exit {i}: test accuracy {values[0]} in int8, {values[1]} in float32.")
        compared = f"int8, logits of the chain of groups differ from the whole exits' by {difference}"
    else:
        compared = f"largest difference of logits from torch {difference}"
    typer.echo(f"Wrote {out}: {', '.join(kinds)}; {compared}. Next: anytime-lct predict {out} FILE")


def write(
    run: Path,
    out: Path,
    *,
    exits: list[int] | None = None,
    only: Literal["exits", "groups"] | None = None,
    calibration_samples: int | None = None,
    data_root: str | None = None,
    single: bool = False,
    force: bool = False,
    quiet: bool = False,
) -> Bundle:
    """Export a run folder that has a profile, in int8 where `calibration_samples` says on how many; show the steps."""
    from rich.console import Console

    from anytime_lct.errors import ProfileError
    from anytime_lct.exits.profile import Profile
    from anytime_lct.export.write import export as exporting
    from anytime_lct.run_folder import folder as run_folder

    opened = run_folder.open_run(run)
    if not (run / run_folder.PROFILE).exists():
        raise ProfileError(
            f"The run '{run}' has no profile yet, which the bundle carries; run anytime-lct analyze {run} first."
        )
    profile = Profile.load(run / run_folder.PROFILE)
    console = Console(stderr=True, quiet=quiet)
    rules = _rules(run, profile)
    with console.status("exporting") as status:
        return exporting(
            opened.network,
            opened.facts,
            profile,
            out,
            model_name=opened.recipe.model.name,
            exits=exits,
            only=only,
            single=single,
            force=force,
            thresholds=rules,
            int8=None if calibration_samples is None else _int8(opened, profile, rules, calibration_samples, data_root),
            progress=lambda what: status.update(what),
        )


def _rules(run: Path, profile: Profile) -> ThresholdTable | None:
    """Read the run's rules for stopping; those of other weights stay behind, and that is said."""
    from anytime_lct.exits.thresholds import NAME, ThresholdTable
    from anytime_lct.run_folder import folder as run_folder

    if not (run / NAME).exists():
        return None
    rules = ThresholdTable.load(run / NAME)
    if rules.network == run_folder.fingerprint(run, [exit.temperature for exit in profile.exits]):
        return rules
    typer.echo(
        f"Leaving out {run / NAME}, which is of other weights or temperatures; search anew with: anytime-lct "
        f"thresholds {run}.",
        err=True,
    )
    return None


def _int8(opened: Run, profile: Profile, rules: ThresholdTable | None, samples: int, data_root: str | None) -> Int8:
    """Join the run's data to the export: training images to calibrate on, and what measures the int8 graphs."""
    from anytime_lct.analysis import measure, threshold_search
    from anytime_lct.cli.analyze import with_root
    from anytime_lct.data import datasets
    from anytime_lct.export.quantise import Int8, check

    check(opened.facts)
    data = datasets.from_recipe(with_root(opened.recipe, data_root))

    def inputs() -> Iterator[NDArray[Any]]:
        left = samples
        for x, _ in data.batches("train"):
            yield x[:left].numpy()
            left -= len(x)
            if left <= 0:
                return

    def measured(answers: Answers, served: tuple[int, ...]) -> tuple[Profile, ThresholdTable | None]:
        judge = measure.judging_answers(answers, data)
        again = measure.measured_again(profile, judge, served, data)
        kept = None if rules is None else rules.of_exits(served)
        if kept is None or not kept.rules:
            return again, None
        temperatures = [again.exits[i - 1].temperature for i in served]
        held_out, test = (
            threshold_search.watch(judge, split, served, temperatures) for split in ("validation", "test")
        )
        found = [
            threshold_search.search(again, held_out, test, rule.mean_flops, (rule.measure,)) for rule in kept.rules
        ]
        return again, kept.model_copy(update={"rules": tuple(found)})

    return Int8(inputs(), measured)


def _numbers(text: str | None) -> list[int] | None:
    from anytime_lct.errors import ExportError

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ExportError(f"Expected exits as numbers with commas, like 1,3, got '{text}'.") from None
