"""The export to ONNX tried at the beginning of a long training, so that what would fail after it is known then."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder.build import build_network
from anytime_lct.training.events import Event, Note, Progress, Start
from anytime_lct.training.methods.table import row_of

# The trial takes from some seconds to a minute, too much for a short training; of how long one is, its first steps say
# little.
LONG, FIRST_STEPS = 900.0, 10.0  # seconds


def with_trial(events: Iterator[Event], recipe: Recipe) -> Iterator[Event]:
    """Yield the events of a run, and, once where it will take long, a Note whether its network can be exported.

    The trial has a network of its own: the run's weights and random numbers are those without it.
    """
    start, begin = None, 0.0
    for event in events:
        yield event
        if isinstance(event, Start):
            start, begin = event, time.monotonic()
        elif isinstance(event, Progress) and start is not None:
            seconds = time.monotonic() - begin
            steps = (event.epoch - 1) * event.batches + event.batch
            remaining = seconds / steps * (event.epochs * event.batches - steps)
            if seconds >= FIRST_STEPS and remaining >= LONG:
                if row_of(recipe.train.method).exits:
                    yield Note(try_export(recipe, start))
                start = None


def try_export(recipe: Recipe, start: Start) -> str:
    """Export the network of a run with fresh weights and write nothing; return a sentence for the user."""
    from anytime_lct.export import write  # training processes do not need it

    begin = time.monotonic()
    shares = recipe.cut.targets(len(start.places) + 1)
    cut = recipe.cut.model_copy(update={"places": start.places, "shares": shares})
    try:
        network = build_network(recipe.model_copy(update={"cut": cut}), start.facts, compare=False)
        with torch.random.fork_rng(devices=[]):
            write.try_export(network, start.facts)
    except Exception as error:  # whatever it is: it must not end the training
        reason = str(error).strip().rstrip(".") or type(error).__name__
        return (
            f"Warning: the network trains, but it cannot be exported: {reason}. Training goes on; where a bundle is "
            f"needed, stop it and change the network."
        )
    return f"The export to ONNX works: tried with fresh weights, in {time.monotonic() - begin:.0f} s."
