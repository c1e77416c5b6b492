"""`anytime-lct export`: write a trained run as ONNX files, with which a device can answer."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anytime_lct.cli.analyze import MODEL
from anytime_lct.cli.screen import print_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anytime_lct.training.events import Note

CALIBRATION_SAMPLES = 512


def export(
    run: Annotated[Path, typer.Argument(help="Run folder, after `train` and `analyze`.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to write.")],
    exits: Annotated[
        str | None, typer.Option(metavar="I,J,..", help="Exits to export, e.g. 1,3; default: all.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="exits|groups", help="Whole exits only, or groups and critics only.")
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Quantise to int8, and measure every exit again.")] = False,
    calibration_samples: Annotated[
        int | None, typer.Option(min=1, help="Training images that set the scales of int8; default: 512.")
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="Folder of the data set, if it has moved.")] = None,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    single_file: Annotated[
        bool,
        typer.Option("--single-file", help="Also write anytime.onnx: all exits in one file, thresholds as an input."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as one JSON object.")] = False,
) -> None:
    """Export every exit to ONNX: whole sub-models, and layer groups and critics for resumable execution.

    Every exit is compared with torch before the folder gets its name; a difference aborts. The rules for stopping
    that `thresholds` has searched go into the bundle. With --int8, quality, temperatures and these rules are measured
    on the int8 graphs, which needs the data set.

    Example: anytime-lct export runs/digits-resnet-0 --out bundles/digits
    """
    from anytime_lct.errors import ExportError
    from anytime_lct.exits.budget import show_count
    from anytime_lct.exits.bundle import Contents
    from anytime_lct.exits.profile import Profile
    from anytime_lct.exits.selector import show_quality
    from anytime_lct.run_folder.paths import Changes
    from anytime_lct.verbs.export import export as export_run

    if only not in (None, "exits", "groups"):
        raise ExportError(f"Expected --only exits or --only groups, got --only {only}.")
    if calibration_samples is not None and not int8:
        raise ExportError("Expected --int8 with --calibration-samples, got it alone; add --int8, or leave it out.")
    contents = Contents(_numbers(exits), only, single_file)  # type: ignore[arg-type]
    with steps("exporting", quiet=as_json) as report:
        bundle = export_run(
            run,
            out,
            contents,
            int8_samples=(calibration_samples or CALIBRATION_SAMPLES) if int8 else None,
            changes=Changes(data_root=data_root, model=model),
            force=force,
            report=report,
        )
    if as_json:
        print_json(bundle.manifest.model_dump_json())
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
            typer.echo(f"Exit {i}: test {before.metric} {values[0]} in int8, {values[1]} in float32.")
        compared = f"int8, logits of the chain of groups differ from the whole exits' by {difference}"
    else:
        compared = f"largest difference of logits from torch {difference}"
    typer.echo(f"Wrote {out}: {', '.join(kinds)}; {compared}. Next: anytime-lct predict {out} FILE")


@contextmanager
def steps(first: str, *, quiet: bool = False) -> Iterator[Callable[[str | Note], None]]:
    """Yield a function that shows the current step, and prints a note."""
    from rich.console import Console

    with Console(stderr=True, quiet=quiet).status(first) as status:

        def report(progress: str | Note) -> None:
            if isinstance(progress, str):
                status.update(progress)
            else:
                typer.echo(progress.text, err=True)

        yield report


def _numbers(text: str | None) -> list[int] | None:
    from anytime_lct.errors import ExportError

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ExportError(f"Expected exits as numbers with commas, like 1,3, got '{text}'.") from None
