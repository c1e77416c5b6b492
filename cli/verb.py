"""The program and its verbs as typer shows them: help fills the line, and types do not take the space of words."""

from __future__ import annotations

import inspect
from typing import Any

from typer.core import TyperCommand, TyperGroup


class ShortTypes:
    """Shows no type beside a switch, and N for a number."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters = super().get_params(ctx)  # type: ignore[misc]
        for parameter in parameters:
            if getattr(parameter, "is_flag", False):
                parameter.metavar = ""
            elif parameter.metavar is None and getattr(parameter, "min", None) is not None:
                parameter.metavar = "N"
        return parameters


class Verbs(ShortTypes, TyperGroup):
    """The program: its verbs are its commands."""


class Verb(ShortTypes, TyperCommand):
    """A command whose paragraphs of help break where the terminal ends, not where the docstring does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        paragraphs = inspect.cleandoc(self.help or "").split("\n\n")
        self.help = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
