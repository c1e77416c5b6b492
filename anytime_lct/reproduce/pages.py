"""The page of an experiment: its table and its picture, in one HTML file that needs no network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from pathlib import Path

from anytime_lct import disk
from anytime_lct.analysis.page import document
from anytime_lct.errors import CheckpointError
from anytime_lct.reproduce.figures import Figure
from anytime_lct.reproduce.plan import Experiment, Scale
from anytime_lct.reproduce.report import show_cell


def write(
    file: Path, experiment: Experiment, scale: Scale, figures: Sequence[Figure], seeds: int, picture: Path
) -> Path:
    """Write the page, whole or not at all, with the picture in it; raises CheckpointError."""
    command = f"anytime-lct reproduce {experiment.name} --scale {scale} --seeds {seeds}"
    drawn = base64.b64encode(picture.read_bytes()).decode()
    differences = "".join(f"<li>{escape(line)}</li>" for line in experiment.differences)
    sections = [
        f'<div class="card">{table(experiment, figures)}</div>',
        f'<div class="card"><img class="picture" alt="{escape(experiment.title)}" src="data:image/png;base64,{drawn}">'
        "</div>",
        f"<section><h2>What differs from the paper's setting</h2><ul>{differences}</ul></section>"
        if differences
        else "",
        f'<p class="note">Made by <code>{escape(command)}</code>.</p>',
    ]
    lead = f"Scale {scale}; {experiment.unit}; mean ± standard deviation over seeds, the paper's figure in parentheses."
    text = document(f"{experiment.name}: {experiment.title}", lead, sections)
    disk.write(file, text, CheckpointError, "choose another --out")
    return file


def table(experiment: Experiment, figures: Sequence[Figure]) -> str:
    """Return the table of an experiment, rows and columns as in the paper."""
    cells = {(figure.cell.row, figure.cell.column): figure for figure in figures}
    columns = list(dict.fromkeys(column for _, column in cells))
    rows: list[str] = []
    for row in dict.fromkeys(row for row, _ in cells):
        texts = [show_cell(cells[row, column], experiment) if (row, column) in cells else "" for column in columns]
        rows.append(f"<tr><td>{escape(row)}</td>{''.join(f'<td>{escape(text)}</td>' for text in texts)}</tr>")
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    return f"<table><tr><th></th>{head}</tr>{''.join(rows)}</table>"
