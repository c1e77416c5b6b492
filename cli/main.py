"""The `anytime-lct` program: registers the verbs and turns the toolkit's errors into one sentence."""

from __future__ import annotations

import os
import sys
from importlib import import_module

import typer
from rich.console import Console
from rich.text import Text

from anytime_lct import __version__
from anytime_lct.errors import LCTError

app = typer.Typer(
    name="anytime-lct",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train networks by local critic training, pick and export their exits, answer within any budget.",
)
VERBS = (
    "quickstart", "inspect", "train", "analyze", "select", "thresholds", "export", "calibrate", "predict", "serve",
    "reproduce",
)  # fmt: skip


for _verb in VERBS:
    app.command(_verb)(getattr(import_module(f"anytime_lct.cli.{_verb}"), _verb))


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def main(
    version: bool = typer.Option(
        False, "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Entry of every verb; holds the options that come before one."""


def run(arguments: list[str] | None = None) -> None:
    """Run the program and leave the process with its exit code.

    0: done; 2: bad input, said in one sentence on stderr; 3: no sub-model meets the budget; 4: a worker was
    lost; 130: interrupted.
    """
    try:
        app(args=arguments, prog_name="anytime-lct")
    except LCTError as error:
        if str(error):
            _complain(str(error))
        _leave(error.exit_code)
    except ModuleNotFoundError as error:
        extra = _extra_of(error)
        if extra is None:
            raise
        _complain(
            f"This command needs the package '{error.name}', which is not installed; "
            f"install it with: pip install 'anytime-lct[{extra}]'"
        )
        sys.exit(2)
    except KeyboardInterrupt:
        if int(os.environ.get("RANK", "0")) == 0:
            _complain("Interrupted.")
        sys.exit(130)


def _leave(code: int) -> None:
    """End the process; a worker at once, as threads of a broken connection may abort an orderly end."""
    if "RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _complain(message: str) -> None:
    Console(stderr=True).print(Text(message, style="red"), soft_wrap=True)


def _extra_of(error: ModuleNotFoundError) -> str | None:
    """Name the extra that brings a missing third-party package; None for a bug of our own."""
    package = (error.name or "").partition(".")[0]
    train = {
        "torch", "torchvision", "fvcore", "matplotlib", "onnx", "onnxscript", "safetensors", "scipy",
        "sklearn", "tensorboard", "tomli_w",
    }  # fmt: skip
    if package in {"starlette", "uvicorn", "httptools", "uvloop", "prometheus_client"}:
        return "serve"
    if package == "timm":
        return "timm"
    return "train" if package in train else None


if __name__ == "__main__":
    run()
