"""A training run in a run folder: prepared, started or resumed, and run through the loop, for every method.

All random numbers follow from the seed and the step, so that a checkpoint holds no random state and a resumed run ends
with the weights of an uninterrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path

import torch
from torch import nn

from anytime_lct import savings
from anytime_lct.data import datasets
from anytime_lct.data.batches import Dataset
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder import checkpoint, journal, paths, start
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.build import example_input
from anytime_lct.run_folder.paths import UNCHANGED, Changes
from anytime_lct.training.demand import estimate, expect_room, out_of_memory
from anytime_lct.training.events import Event, Note, Start
from anytime_lct.training.interruption import interruptible
from anytime_lct.training.loop import Loop
from anytime_lct.training.methods.table import checked, expect_processes, row_of
from anytime_lct.training.objective import weigh_classes
from anytime_lct.training.prepare import (
    costs_of_exits,
    cut_network,
    device_of,
    expect_keys_suit,
    expect_one_sample_suffices,
    expect_windows_suit,
    extension_text,
    fit_data,
    shortest_minibatch,
    suit_device,
    warning_on_exits,
)
from anytime_lct.training.processes.team import Team
from anytime_lct.training.saving import Saving
from anytime_lct.training.schedule import Clock


def train(
    recipe: Recipe,
    data: Dataset,
    path: Path,
    *,
    resume: bool = False,
    changes: Changes = UNCHANGED,
    team: Team | None = None,
) -> Iterator[Event]:
    """Train in the run folder `path`; with `resume`, continue from its newest checkpoint, with changes of its recipe.

    Yields a Start, a Progress every few minibatches and an Epoch after each epoch, which the caller shows as it likes.
    With a `team`, all its processes call this, each trains its own layer groups, and only the leader yields events and
    writes what a run has once. On SIGINT or SIGTERM the update in progress is finished, a checkpoint is written and
    KeyboardInterrupt raised. Raises DivergenceError, CheckpointError, RecipeError, DataError and WorkerLostError.
    """
    recipe = checked(recipe if resume else datasets.sized(recipe))
    team = team or Team(device_of(recipe.train.device))
    per_epoch = data.num_batches("train")
    rows = data.num_rows("train", 0) // team.replicas if per_epoch else 1
    expect_processes(recipe, team.workers, team.replicas)
    shortest = shortest_minibatch(data, team)
    with team.together():
        resume = resume or team.broadcast(team.restarted and (path / run_folder.RECIPE).exists())
        if resume:
            recipe, facts = run_folder.read(path, changes)
            recipe = checked(recipe)
            run_folder.expect_same_data(path, facts, data.facts)
        fresh_start = checkpoint.fresh_start(path / run_folder.CHECKPOINTS) if resume else 0
        clock = Clock(recipe.train.epochs * per_epoch, per_epoch, rows, fresh_start, recipe.train.accumulate)
        recipe = suit_device(fit_data(recipe, data), team.device)
        recipe = recipe if resume else weigh_classes(recipe, data)
        row = row_of(recipe.train.method)
        fewer_groups = partial(savings.fewer_groups, recipe.cut)
        network, recipe = cut_network(recipe, data, team)
        costs = costs_of_exits(recipe, network, data.facts) if team.leads else ()
        notes = list(data.notes)
        notes += [] if resume else [fewer_groups(network.places), warning_on_exits(recipe, costs, data.facts)]
        if shortest == 1:
            module = network if row.exits else nn.Sequential(*network.groups)
            expect_one_sample_suffices(module, example_input(data.facts, 1))
        expect_keys_suit(recipe, data.facts)
        expect_windows_suit(nn.Sequential(*network.groups), data)
        if recipe.train.weights and checkpoint.newest(path / run_folder.CHECKPOINTS) is None:
            if resume:
                paths.expect_weights_unaltered(path)
            note = start.load_weights(network, recipe, data.facts, frozen=row.fits_exits)
            if note and team.leads:
                yield Note(note)
        demand = estimate(network, recipe, example_input(data.facts, rows), team)
        warning = expect_room(demand, recipe, data.facts, team) if demand else None
        if warning and team.leads:
            yield Note(warning)
        if team.device.type == "cuda":
            torch.set_float32_matmul_precision("high")  # TF32, which convolutions have by default
        network = network.to(team.device)
        if recipe.train.channels_last:
            network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network.train()
        if team.leads and not resume:
            run_folder.create(path, recipe, data.facts)
        team.wait_for_all()
        with (
            run_folder.locked(path) if team.leads else nullcontext(),
            interruptible() as interrupted,
            out_of_memory(recipe),
        ):
            if team.leads and resume and changes != UNCHANGED:
                earlier = run_folder.rewrite(path, changes)
                if earlier.train.epochs < recipe.train.epochs:
                    finished = len(journal.read(path / run_folder.METRICS))
                    yield Note(extension_text(recipe, earlier, finished, clock))
            method = row.make(network, recipe, data.facts.task, clock, team)
            num_groups, places = network.num_groups, network.places
            del network  # frees the groups of other workers
            saving = Saving(path, recipe, data.facts.metric, method, clock, team, num_groups)
            with closing(saving):
                num_exits = num_groups if row.exits else 1
                loop = Loop(method, data, recipe.train, clock, team, num_exits, saving, interrupted)
                if team.leads:
                    yield Start(data.facts, places, costs, demand and demand.estimate)
                    yield from (Note(note) for note in notes if note)
                yield from loop.events(resume)
