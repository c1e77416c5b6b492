"""How raw inputs become network inputs, as the manifest of a bundle says it; a tokenizer is a file of the bundle."""

from __future__ import annotations

from pathlib import Path

from anytime_lct import disk
from anytime_lct.errors import ExportError
from anytime_lct.exits.bundle import File, Preprocessing, describe_file
from anytime_lct.task import Facts

TOKENIZER = "tokenizer.json"


def preprocessing(facts: Facts, folder: Path) -> Preprocessing:
    """Return the preprocessing of raw inputs that the network was measured with; `folder` gets what it reads."""
    if facts.row.is_text:
        return Preprocessing(kind="text", symbols="".join(facts.classes), encoding=facts.encoding)
    if facts.inputs == "array":
        tokenizer = _written(facts.tokenizer, folder) if facts.tokenizer else None
        return Preprocessing(kind="array", shape=facts.input_shape, tokens=facts.tokens or None, tokenizer=tokenizer)
    channels, height, width = facts.input_shape
    return Preprocessing(
        kind="image", channels=channels, height=height, width=width, mean=facts.mean, std=facts.std,
        resize=facts.resize, ground="white",
    )  # fmt: skip


def _written(tokenizer: str, folder: Path) -> File:
    disk.write(folder / TOKENIZER, tokenizer, ExportError)
    return describe_file(folder / TOKENIZER)
