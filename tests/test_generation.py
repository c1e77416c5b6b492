"""Texts that a network on text generates: by arithmetic over its answers, from Python and from the command line."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from bundles import SYMBOLS, write_image_bundle, write_text_bundle
from programs import Program

from anytime_lct.errors import BudgetError, InputError, NothingFitsError
from anytime_lct.exits.budget import DEFAULT_ASK, Ask, Budget
from anytime_lct.runtime import AnytimeSession, Character, generate


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_text_bundle(tmp_path / "text")
    return tmp_path / "text"


def text_of(characters: list[Character]) -> str:
    return "".join(character.symbol for character in characters)


@pytest.mark.parametrize("ask", [DEFAULT_ASK, Ask(Budget(exit=1), mode="fixed"), Ask(min_confidence=0.6)])
def test_every_character_is_the_answer_to_the_text_before_it(folder: Path, ask: Ask) -> None:
    session, text = AnytimeSession(folder), "ab"
    for character in generate(session, "ab", 12, ask, temperature=0):
        answer = session.run(np.array([[SYMBOLS.index(symbol) for symbol in text]]), ask)
        assert (character.exit, character.flops, character.stopped) == (answer.exit, answer.flops, answer.stopped)
        assert character.symbol == SYMBOLS[answer.classes[0, -1]]
        assert character.probability == answer.probabilities[0, -1].max()
        text += character.symbol
    assert len(text) == 14


def test_draws_follow_the_probabilities_and_the_seed(folder: Path) -> None:
    session = AnytimeSession(folder)
    texts = [text_of(list(generate(session, "a", 30, seed=seed))) for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]
    p = session.run(np.array([[0]])).probabilities[0, -1].astype(float)
    for temperature, expected in ((1.0, p), (0.5, p**2 / (p**2).sum()), (2.0, p**0.5 / (p**0.5).sum())):
        for seed in range(50):
            draw, k = np.random.default_rng(seed).random(), 0
            while expected[: k + 1].sum() <= draw:
                k += 1
            assert next(generate(session, "a", 1, temperature=temperature, seed=seed)).symbol == SYMBOLS[k]


def test_a_context_bounds_what_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, lengths, answer = AnytimeSession(folder), list[int](), AnytimeSession.run
    monkeypatch.setattr(AnytimeSession, "run", lambda self, x, ask: lengths.append(x.shape[1]) or answer(self, x, ask))
    list(generate(session, "aba", 4, context=4))
    assert lengths == [3, 4, 4, 4]


def test_what_cannot_be_generated_is_refused_before_the_first_character(folder: Path, tmp_path: Path) -> None:
    session = AnytimeSession(folder)
    for refused in (
        {"length": 0}, {"length": 1.0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"seed": -1},
        {"context": 0}, {"prompt": ""}, {"prompt": "x"},
    ):  # fmt: skip
        with pytest.raises(InputError, match="Expected"):
            generate(session, **({"prompt": "a", "length": 3} | refused))
    with pytest.raises(NothingFitsError):
        generate(session, "a", 3, Ask(Budget(flops=1)))
    with pytest.raises(BudgetError, match="calibrate"):
        next(generate(session, "a", 3, Ask(timeout=1.0)))
    write_image_bundle(tmp_path / "images")
    with pytest.raises(InputError, match="Expected images"):
        generate(AnytimeSession(tmp_path / "images"), "a", 3)


def test_the_command_line_writes_the_same_text(program: Program, folder: Path) -> None:
    ask = Ask(min_confidence=0.6)
    expected = list(generate(AnytimeSession(folder), "ab", 20, ask, temperature=0.7, seed=5))
    text, flops = text_of(expected), sum(character.flops for character in expected) / 20
    predict = ("predict", folder, "--generate", 20, "--prompt", "ab", "--min-confidence", "0.6", "--seed", 5)
    predict += ("--temperature", "0.7")
    code, out, err = program(*predict)
    assert (code, out) == (0, f"ab{text}\n") and err.startswith("20 characters: ") and " by exit 1" in err
    answer = json.loads(program(*predict, "--json")[1])
    assert (answer["prompt"], answer["text"], answer["flops"]) == ("ab", text, flops)
    assert answer["exits"] == [character.exit for character in expected]
    rows = [json.loads(line) for line in program(*predict, "--format", "jsonl")[1].splitlines()]
    assert [Character(**row) for row in rows] == expected
    lines = list(csv.DictReader(program(*predict, "--format", "csv")[1].splitlines(keepends=True)))
    assert [line["symbol"] for line in lines] == list(text)
    assert program("predict", folder, "--generate", 3)[1] == program("predict", folder, "--generate", 3)[1]
    for arguments, says in (
        (("--generate", 3, "--text", "a"), "got --text"), (("a.txt", "--generate", 3), "got inputs"),
        (("--text", "a", "--seed", 3), "--generate with --seed"), (("--prompt", "a"), "--generate with --prompt"),
        (("--generate", 3, "--exit", 9), "among 1, 2, 3, got 9"),
    ):  # fmt: skip
        code, out, err = program("predict", folder, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1) and says in err
