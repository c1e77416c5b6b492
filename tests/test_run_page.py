"""The page of a run: what stands in it is what was measured, and it needs nothing but itself."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

from anytime_lct import verbs
from anytime_lct.analysis import page
from anytime_lct.analysis.answers import Answers, Recorder
from anytime_lct.analysis.svg import ticks
from anytime_lct.exits.profile import Profile
from anytime_lct.network import LCTNetwork
from anytime_lct.task import Facts

SECTIONS = [
    "Test accuracy over multiply-adds", "Latency here", "Which samples each exit gets right", "When samples stop",
    "Calibration", "Confusion",
]  # fmt: skip


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    first, critic, last = (nn.Sequential(nn.Flatten(), nn.Linear(4, width)) for width in (4, 3, 3))
    return LCTNetwork([first, last], [critic])


def headings(text: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", text)


class Balance(HTMLParser):
    """Collects the tags that are open."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "line", "polyline", "polygon", "circle", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag or tag in ("polygon", "circle", "rect")


def test_a_page_holds_every_figure_and_needs_no_network(network, tmp_path):
    batches = [(torch.randn(40, 1, 2, 2), torch.arange(40) % 3) for _ in range(2)]
    data = {"test": batches, "validation": batches, "classes": ["<cat>", "dog", "cow"]}
    profile = verbs.analyze(network, data, html=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert headings(text) == SECTIONS
    assert not re.search(r"(src|href)=|https?:|<script|@import", text)
    assert "<cat>" not in text and "&lt;cat&gt;" in text
    assert profile.row.show(profile.exits[0].test.value) in text
    parser = Balance()
    parser.feed(text)
    assert not parser.open


def test_a_page_of_numbers_shows_answers_over_the_truth_and_one_of_a_text_its_curve(network, tmp_path):
    numbers = [(torch.randn(30, 1, 2, 2), torch.randn(30, 3))]
    verbs.analyze(network, {"test": numbers}, html=tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert headings(text) == ["Test rmse over multiply-adds", "Latency here", "Answers"]
    assert text.count("<circle") == 2 + 2 * 30
    profile = verbs.analyze(network, {"test": numbers}).model_copy(update={"metric": "bpc"})
    words = page.page(Profile.model_validate(profile.model_dump()), Facts("t", "language-model", (4,), 3, ("a",)), None)
    assert headings(words) == ["Test bpc over multiply-adds", "Latency here"]


def test_answers_count_what_exits_get_right():
    recorder = Recorder([1.0, 2.0])
    Z = torch.tensor([[0.0, 2.0], [2.0, 0.0], [0.0, 6.0]])
    recorder([Z, Z.flip(1)], torch.tensor([1, 1, 1]))
    answers = recorder.answers()
    assert answers.correct.tolist() == [[True, False, True], [False, True, False]]
    assert answers.confusion(0, 2).tolist() == [[0, 0], [1, 2]]
    assert answers.confidences[1] == pytest.approx([1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-1)), 1 / (1 + np.exp(-3))])
    assert answers.stops(0.95).tolist() == [1, 1, 0] and answers.stops(1.0).tolist() == [1, 1, 1]
    assert sum(count for *_, count in answers.reliability(0)) == 3
    assert answers.reliability(0)[-1][1:] == (1.0, 1)


def test_many_classes_are_listed_by_their_confusions():
    labels = np.arange(40)
    answers = Answers(np.stack([labels, np.roll(labels, 1)]), np.ones((2, 40)), labels)
    counts = answers.confusion(1, 40)
    assert page._most_confused(counts, [f"c{k}" for k in range(40)]).count("<tr>") == 1 + page.MOST_CONFUSED


@pytest.mark.parametrize(
    ("low", "high", "numbers"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (93.2, 95.1, [93.5, 94, 94.5, 95]),
        (1, 1, [1]),
        (1.9, 1.6, [1.6, 1.7, 1.8, 1.9]),
    ],
)
def test_ticks_are_round(low, high, numbers):
    assert ticks(low, high) == pytest.approx(numbers)
