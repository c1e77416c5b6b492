"""Equations as MathML, which browsers show by themselves: the site loads nothing from elsewhere."""

from __future__ import annotations

import re
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml

TAG = re.compile(r"\\tag\{(\d+)\}")


def visit_inline(translator: Any, node: nodes.Element) -> None:
    """Write an equation that stands in a sentence."""
    translator.body.append(tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def visit_block(translator: Any, node: nodes.Element) -> None:
    """Write an equation on a line of its own, with the number of its \\tag on the right."""
    text, number = node.astext(), TAG.search(node.astext())
    label = f'<span style="float: right">({number[1]})</span>' if number else ""
    equation = tex2mathml(TAG.sub("", text), as_block=True)
    translator.body.append(f'<div style="margin: 1em 0">{label}{equation}</div>\n')
    raise nodes.SkipNode
