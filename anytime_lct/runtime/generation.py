"""Text that a language model continues by itself, character by character, each within a budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from anytime_lct.errors import InputError
from anytime_lct.exits.budget import DEFAULT_ASK, Ask, StopReason
from anytime_lct.runtime.answer import Answer
from anytime_lct.runtime.confidence import softmax
from anytime_lct.runtime.preprocess import from_text
from anytime_lct.runtime.reading import TextReader
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.runtime.walk import Walk


@dataclass(frozen=True)
class Character:
    """A character of a generated text: its probability, the exit that it was drawn from, and why that exit.

    `flops` are the multiply-adds for each character that was read before it was drawn.
    """

    symbol: str
    probability: float
    exit: int
    flops: float
    stopped: StopReason


def generate(
    session: AnytimeSession,
    prompt: str,
    length: int,
    ask: Ask = DEFAULT_ASK,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    context: int | None = None,
) -> Iterator[Character]:
    """Yield `length` characters that follow `prompt`, each drawn as soon as it is asked for.

    Every character is a request of its own, answered as `ask` says by the exit that its budget, confidence or deadline
    allows. Probabilities are those of the exit, its logits divided by `temperature` too; 0 takes the most likely
    character. Equal seeds give equal texts. A network whose state the bundle carries reads every character once, and
    groups that were not needed catch up; any other, or with a `context`, reads the whole text, or that many characters
    of it, anew for every character. Both have the hidden state of the whole text, whatever exits answered before.
    Raises InputError, BudgetError and NothingFitsError.

    >>> "".join(c.symbol for c in generate(session, "In the ", 40, temperature=0.7))   # doctest: +SKIP
    'most of the string and the context manag'
    """
    if type(length) is not int or length < 1:
        raise InputError(f"Expected a number of characters from 1 on, got {length!r}; give another.")
    if not 0 <= temperature < math.inf:
        raise InputError(f"Expected a temperature of 0 or more, got {temperature!r}; 1 draws as the network predicts.")
    if type(seed) is not int or seed < 0:
        raise InputError(f"Expected a seed as a whole number from 0 on, got {seed!r}; give another.")
    if context is not None and (type(context) is not int or context < 1):
        raise InputError(f"Expected a context of at least 1 character, got {context!r}; leave it out to read all.")
    text = from_text(prompt, session.manifest.preprocessing)
    session.plan(ask)
    draws = np.random.default_rng(seed).random(length) if temperature else np.zeros(length)
    return _characters(session, text, _replies(session, ask, context), draws, temperature)


def _replies(session: AnytimeSession, ask: Ask, context: int | None) -> Callable[[NDArray[np.int64]], Answer]:
    """Return a function that answers a text (1, T) which grows from call to call."""
    if context is not None or not (session.manifest.reads_on and session.graphs.backend.feeds_states):
        return lambda text: session.run(text if context is None else text[:, -context:], ask)
    reader = TextReader(session.graphs, session.manifest, session.profile)
    timeout = ask.timeout if ask.mode == "anytime" else None

    def go_on(text: NDArray[np.int64]) -> Answer:
        start, new = time.perf_counter(), text[:, reader.length :]
        with Walk(new, reader, session.profile, session.timing) as walk:
            answer = session.follow(walk, session.plan(ask), timeout, start)
        return replace(answer, flops=reader.flops / new.shape[1])

    return go_on


def _characters(
    session: AnytimeSession,
    text: NDArray[np.int64],
    reply: Callable[[NDArray[np.int64]], Answer],
    draws: NDArray[np.float64],
    temperature: float,
) -> Iterator[Character]:
    """Yield a character that follows the text for every draw, a number of [0, 1)."""
    for draw in draws:
        answer = reply(text)
        p = _probabilities(answer, temperature)
        k = min(int(np.searchsorted(p.cumsum(), draw * p.sum(), side="right")), len(p) - 1)
        symbol, probability = session.manifest.classes[k], float(answer.probabilities[0, -1, k])
        yield Character(symbol, probability, answer.exit, answer.flops, answer.stopped)
        text = np.append(text, [[k]], axis=1)


def _probabilities(answer: Answer, temperature: float) -> NDArray[np.float64]:
    """Return the probabilities (K,) by which the next character is drawn; at temperature 0 all of the likeliest."""
    logits = answer.logits[0, -1]
    if temperature == 0:
        return np.eye(len(logits))[logits.argmax()]
    return softmax(logits, np.ravel(answer.temperatures)[-1] * temperature)


def default_prompt(session: AnytimeSession) -> str:
    """Return what a text begins with where there is no prompt: a line feed, or the first symbol of the network."""
    symbols = session.manifest.preprocessing.symbols
    return "\n" if "\n" in symbols else symbols[:1]
