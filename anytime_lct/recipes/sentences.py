"""What is wrong with a table of a recipe, in one sentence: the key, what was expected, what came."""

from __future__ import annotations

import difflib

from pydantic import BaseModel, ValidationError


def sentence(error: ValidationError, kind: type[BaseModel], *above: str) -> str:
    """Describe the first error of a table in a sentence: which key, what was expected, what came.

    `kind` is the model that was validated, `above` the names of the tables around it.
    """
    errors = error.errors()
    key = _keys(errors[0]["loc"])[:2]  # where it may have several types, the error of the type that came nearest
    first = max((entry for entry in errors if _keys(entry["loc"])[:2] == key), key=lambda entry: len(entry["loc"]))
    path = [*above, *_keys(first["loc"])]
    name = ".".join(path) or "the recipe"
    if first["type"] == "extra_forbidden":
        known = _keys_beside(kind, _keys(first["loc"]))
        near = difflib.get_close_matches(path[-1], known, n=3)
        return f"The recipe has an unknown key '{name}'; did you mean {' or '.join(near or known)}?"
    if first["type"] == "missing":
        return f"The recipe needs a value for '{name}'; set it in the file or with --set {name}=VALUE."
    reason = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and isinstance(first["input"], dict):  # entries that contradict each other
        return f"The recipe contradicts itself: {reason}."
    return f"The recipe's '{name}' is {first['input']!r}: {reason[0].lower()}{reason[1:]}."


def _keys(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of a pydantic location, without the types that it puts between them."""
    return [str(part) for part in location if isinstance(part, int) or not set(part) & set("-[")]


def _keys_beside(kind: type[BaseModel], path: list[str]) -> list[str]:
    for part in path[:-1]:
        annotation = kind.model_fields[part].annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            kind = annotation
    return list(kind.model_fields)
