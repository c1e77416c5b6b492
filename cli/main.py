"""The `anytime-lct` program: registers the verbs, and reports the toolkit's errors in one sentence."""

from __future__ import annotations

import json
import os
import sys
import warnings
from contextlib import nullcontext, redirect_stdout
from importlib import import_module
from itertools import chain
from typing import Any

import typer
from rich.console import Console
from rich.text import Text

from anytime_lct import __version__
from anytime_lct.cli.extras import EXTRAS
from anytime_lct.cli.screen import OnlyResults
from anytime_lct.cli.verb import Verb, Verbs
from anytime_lct.errors import LCTError, StoppedError

app = typer.Typer(
    name="anytime-lct",
    cls=Verbs,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    help="Train networks by local critic training, pick and export their exits, answer within any budget.",
)
PANELS = {
    "Start": ("doctor", "quickstart"),
    "Train": ("inspect", "recipe", "train"),
    "Choose": ("analyze", "select", "thresholds"),
    "Answer": ("export", "calibrate", "predict", "serve"),
    "Reproduce": ("reproduce",),
}  # of --help, by the way of the data
VERBS = tuple(chain.from_iterable(PANELS.values()))
UsageError: Any = typer.BadParameter.__base__  # typer exports no name for it


for _panel, _verbs in PANELS.items():
    for _verb in _verbs:
        app.command(_verb, cls=Verb, rich_help_panel=_panel)(getattr(import_module(f"anytime_lct.cli.{_verb}"), _verb))


def _show_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Hold the options that come before a verb."""


def run(arguments: list[str] | None = None) -> None:
    """Run the program and end the process with its exit code.

    0: done; 2: bad input, reported in one sentence on stderr; 3: no sub-model meets the budget; 4: a worker was lost;
    130: interrupted. With --json an error is printed on stdout as well, as one JSON object.
    """
    as_json = "--json" in (sys.argv[1:] if arguments is None else arguments)
    warnings.formatwarning = lambda message, *_: f"{message}\n"  # without the line of code that warns
    only_results: Any = OnlyResults(sys.stdout)
    try:
        with redirect_stdout(only_results) if as_json else nullcontext():
            code = app(args=arguments, prog_name="anytime-lct", standalone_mode=False)
        if code == StoppedError.exit_code:  # by typer, without a word
            raise KeyboardInterrupt
        sys.exit(code)
    except UsageError as error:
        from typer.rich_utils import rich_format_error

        rich_format_error(error)
        _print_json(LCTError(error.format_message()), as_json)
        sys.exit(error.exit_code)
    except LCTError as error:
        _report(error, as_json)
        _exit(error.exit_code)
    except ModuleNotFoundError as error:
        extra = _extra_of(error)
        if extra is None:
            raise
        missing = LCTError(
            f"This command needs the package '{error.name}', which is not installed; "
            f"install it, in a checkout of anytime-lct, with: pip install '.[{extra}]'"
        )
        _report(missing, as_json)
        sys.exit(missing.exit_code)
    except KeyboardInterrupt:
        if int(os.environ.get("RANK", "0")) == 0:
            _print_error("Interrupted.")
        sys.exit(StoppedError.exit_code)


def _exit(code: int) -> None:
    """End the process; a worker at once, as threads of a broken connection can crash a normal exit."""
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _report(error: LCTError, as_json: bool) -> None:
    """Print an error on stderr, and as JSON on stdout; of several processes, the one that started the others does."""
    if str(error):
        _print_error(str(error))
    _print_json(error, as_json)


def _print_json(error: LCTError, as_json: bool) -> None:
    if as_json and "RANK" not in os.environ:
        typer.echo(json.dumps(error.as_dict()))


def _print_error(message: str) -> None:
    Console(stderr=True).print(Text(message, style="red"), soft_wrap=True)


def _extra_of(error: ModuleNotFoundError) -> str | None:
    """Return the extra that installs a missing third-party package; None for a bug of this package."""
    package = (error.name or "").partition(".")[0]
    return next((extra for extra, packages in EXTRAS.items() if package in packages), None)


if __name__ == "__main__":
    run()
