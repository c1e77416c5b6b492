"""`anytime-lct export`: write a trained run as ONNX files that a device can answer with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from anytime_lct.bundle import Bundle


def export(
    run: Annotated[Path, typer.Argument(help="Run folder that `train` and `analyze` wrote.")],
    out: Annotated[Path, typer.Option(help="Bundle folder to write.")],
    exits: Annotated[
        str | None, typer.Option(metavar="I,J,..", help="Exits to export, e.g. 1,3; default: all.")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="exits|groups", help="Whole exits only, or groups and critics only.")
    ] = None,
    single_file: Annotated[
        bool,
        typer.Option("--single-file", help="Write anytime.onnx too: all exits in one file, thresholds as an input."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as one JSON object.")] = False,
) -> None:
    """Export every exit to ONNX: whole sub-models, and layer groups and critics for resumable execution.

    Every exit is compared with torch before the folder gets its name; a difference aborts.

    Example: anytime-lct export runs/digits-resnet-0 --out bundles/digits
    """
    from anytime_lct.errors import ExportError

    if only not in (None, "exits", "groups"):
        raise ExportError(f"Expected --only exits or --only groups, got --only {only}.")
    chosen: dict[str, Any] = {"exits": _numbers(exits), "only": only, "single": single_file}
    bundle = write(run, out, **chosen, force=force, quiet=as_json)
    if as_json:
        typer.echo(bundle.manifest.model_dump_json())
        return
    kinds = [
        f"{len(bundle.manifest.exits)} exits",
        f"{len(bundle.manifest.groups)} groups",
        f"{len(bundle.manifest.critics)} critics",
    ] + ([bundle.manifest.single.name] if bundle.manifest.single else [])
    typer.echo(
        f"Wrote {out}: {', '.join(kinds)}; largest difference of logits from torch "
        f"{bundle.manifest.largest_difference:.1e}. Next: anytime-lct predict {out} FILE"
    )


def write(
    run: Path,
    out: Path,
    *,
    exits: list[int] | None = None,
    only: Literal["exits", "groups"] | None = None,
    single: bool = False,
    force: bool = False,
    quiet: bool = False,
) -> Bundle:
    """Export a run folder that has a profile; show what is being done."""
    from rich.console import Console

    from anytime_lct import run_folder
    from anytime_lct.errors import ProfileError
    from anytime_lct.export import export as exporting
    from anytime_lct.profile import Profile

    opened = run_folder.open_run(run)
    if not (run / run_folder.PROFILE).exists():
        raise ProfileError(
            f"The run '{run}' has no profile yet, which the bundle carries; run anytime-lct analyze {run} first."
        )
    profile = Profile.load(run / run_folder.PROFILE)
    console = Console(stderr=True, quiet=quiet)
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
            progress=lambda what: status.update(what),
        )


def _numbers(text: str | None) -> list[int] | None:
    from anytime_lct.errors import ExportError

    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ExportError(f"Expected exits as numbers with commas, like 1,3, got '{text}'.") from None
