"""What is fixed before a run starts: the device, the cuts, the worker of each group, and that minibatches suffice."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import redirect_stderr
from copy import deepcopy
from io import StringIO

import torch
from torch import Tensor, nn

from anytime_lct import savings
from anytime_lct.critics.places import choose_places
from anytime_lct.cutting.choice import spread, worker_costs
from anytime_lct.cutting.seconds import Peers
from anytime_lct.data.batches import Dataset, Split
from anytime_lct.errors import DataError, RecipeError
from anytime_lct.models import networks
from anytime_lct.modes import probing
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.fitting import fit, is_fitted
from anytime_lct.recipes.recipe import ModelRecipe, OptimizerRecipe, Recipe
from anytime_lct.run_folder.build import build_model, build_network, example_input, traits
from anytime_lct.task import Facts
from anytime_lct.training.methods.table import row_of
from anytime_lct.training.processes.team import Team
from anytime_lct.training.schedule import Clock, factor

EVALUATED: tuple[Split, ...] = ("validation", "test")


def shortest_minibatch(data: Dataset, team: Team) -> int:
    """Return the smallest number of samples that a process gets of a minibatch; raises DataError where it is 0."""
    per_epoch = data.num_batches("train")
    if per_epoch < 1:
        raise DataError("The training split has no whole minibatch; lower data.batch_size or data.validation.")
    shortest = min(data.num_rows("train", number) for number in (0, per_epoch - 1))
    if shortest < team.replicas:
        raise DataError(
            f"Expected at least one sample of every minibatch for each of {team.replicas} replicas, got {shortest} in "
            f"the shortest; choose another data.batch_size."
        )
    return shortest // team.replicas


def expect_one_sample_suffices(network: nn.Module, example: Tensor) -> None:
    """Raise DataError where a minibatch of one sample, such as `example`, is too few for the network's batch norms."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            deepcopy(network).train()(example)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise DataError(
                "Expected at least two samples in every minibatch of a process, since batch norms of this network see "
                "one value per sample, got one in the last; choose another data.batch_size or data.validation."
            ) from None


def expect_keys_suit(recipe: Recipe, facts: Facts) -> None:
    """Raise DataError for data of one class, and RecipeError for a key that the task has no use for."""
    if facts.task == "classification" and len(facts.classes) == 1:
        raise DataError(
            f"Expected at least two classes in '{facts.name}', got {facts.classes[0]} alone; add images of another."
        )
    if facts.row.is_numbers and recipe.train.label_smoothing:
        raise RecipeError(
            f"Expected no train.label_smoothing with targets that are numbers, got {recipe.train.label_smoothing}; "
            f"leave it out."
        )


def expect_windows_suit(network: nn.Module, data: Dataset) -> None:
    """Raise DataError where a network on text, with a fixed number of positions, cannot read evaluation's windows."""
    length = data.facts.input_shape[0]
    for split in EVALUATED if data.facts.row.is_text else ():
        x, _ = next(iter(data.batches(split)), (None, None))
        if x is None or x.shape[1] == length:
            continue
        with probing(network), redirect_stderr(StringIO()):  # torch.fx prints the traceback of what fails in it
            try:
                network(x[:2])
            except RuntimeError as error:
                reason = next(iter(str(error).splitlines()), "").rstrip(".")
                raise DataError(
                    f"Expected a network that reads the {split} split's windows of {x.shape[1]} characters, got one "
                    f"for {length} alone ({reason}); let it slice its positions to the length of its input."
                ) from None


def fit_data(recipe: Recipe, data: Dataset) -> Recipe:
    """Return the recipe with all that depends on the data: batch size, network, its optimizers, clipping."""
    rows = recipe.data.batch_size or data.num_rows("train", 0)
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"batch_size": rows})})
    if recipe.model.name == networks.AUTO:
        tokens = data.facts.tokens if data.facts.inputs == "array" else None
        chosen = networks.suited(data.facts.input_shape, tokens) | recipe.model.options
        recipe = recipe.model_copy(update={"model": ModelRecipe(**chosen)})
    if is_fitted(recipe):
        return recipe
    with torch.random.fork_rng(devices=[]):
        model = build_model(recipe, data.facts)
    return fit(recipe, traits(model), rows)


def suit_device(recipe: Recipe, device: torch.device) -> Recipe:
    """Return the recipe with a number format and a memory layout, by default those that are fastest on the device."""
    train, fast = recipe.train, device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    precision = train.precision or ("bfloat16" if fast else "float32")
    channels_last = fast if train.channels_last is None else train.channels_last
    train = train.model_copy(update={"precision": precision, "channels_last": channels_last})
    return recipe.model_copy(update={"train": train})


def cut_network(recipe: Recipe, data: Dataset, team: Team) -> tuple[LCTNetwork, Recipe]:
    """Return the network, cut into groups, and the recipe with its places; set `team.bounds`, who owns which groups.

    The recipe in the run folder has the number of groups also where it is the default. Where the cut depends on this
    machine (measured, by all processes at the same time) or on the number of workers (memory), it is chosen once, and
    that recipe names the places.
    """
    row = row_of(recipe.train.method)
    if not (row.exits or row.sub_network) and recipe.cut.by == "shares" and not recipe.cut.shares:
        recipe = recipe.model_copy(update={"cut": recipe.cut.model_copy(update={"by": "layers"})})
    recipe = _with_places(recipe, data, team) if row.cuts else recipe
    network = build_network(recipe, data.facts, whole=not row.cuts)
    if row.cuts and recipe.train.exit is None:
        recipe = recipe.model_copy(update={"cut": recipe.cut.model_copy(update={"groups": network.num_groups})})
    if not team.bounds:
        by = recipe.cut.spread or ("balanced" if recipe.cut.by in ("layers", "shares") else recipe.cut.by)
        bounds = (0, network.num_groups)
        if team.workers > 1 and team.leads:
            rows = _rows(data, team) if by != "balanced" else 2
            example = example_input(data.facts, rows)
            critics = list(network.critics) if row.exits else []
            table = worker_costs(list(network.groups), critics, example, by, weight_copies(recipe.groups))
            bounds = spread(table, team.workers)
        team.bounds = tuple(team.broadcast(bounds))
    return network, recipe


def costs_of_exits(recipe: Recipe, network: LCTNetwork, facts: Facts) -> tuple[int, ...]:
    """Return the multiply-adds of every exit, the main network last; () where a method has the main exit alone."""
    if not row_of(recipe.train.method).exits or network.num_groups == 1:
        return ()
    return savings.multiply_adds(network, example_input(facts))


def warning_on_exits(recipe: Recipe, costs: Sequence[int], facts: Facts) -> str:
    """Return `savings.warning` on the exits of a recipe, which have these costs."""
    if not savings.problem(costs):
        return ""
    with torch.random.fork_rng(devices=[]):
        model = build_model(recipe, facts)
    return savings.warning(costs, model, example_input(facts), recipe.cut, recipe.critic, facts.task)


def _with_places(recipe: Recipe, data: Dataset, team: Team) -> Recipe:
    cut = recipe.cut
    if cut.places or cut.shares or cut.groups == 1 or cut.by not in ("measured", "memory"):
        return recipe
    places: tuple[str, ...] = ()
    if team.leads or cut.by == "measured":
        places = choose_places(
            build_model(recipe, data.facts).to(team.device),
            example_input(data.facts, _rows(data, team)).to(team.device),
            cut,
            recipe.critic,
            data.facts.task,
            weight_copies=weight_copies(recipe.groups) if team.workers > 1 else 0,
            peers=Peers(team.rank, team.mean),
        )
    places = tuple(team.broadcast(places))
    return recipe.model_copy(update={"cut": cut.model_copy(update={"places": places})})


def extension_text(recipe: Recipe, earlier: Recipe, finished: int, clock: Clock) -> str:
    """Return a line on how a run continues beyond the epochs of an earlier recipe, `finished` of which are over."""
    tables, epochs = ("groups_schedule", "critics_schedule"), recipe.train.epochs
    schedules = [getattr(recipe, table) for table in tables if table in row_of(recipe.train.method).reads]
    text = f"The run goes on from {earlier.train.epochs} to {epochs} epochs"
    if schedules:
        names = " and ".join(dict.fromkeys(schedule.name for schedule in schedules))
        share = factor(schedules[0], finished * clock.per_epoch, clock.total, clock.per_epoch)
        text += (
            f"; from epoch {finished + 1} on, learning rates follow the schedule ({names}) of {epochs} epochs, now at "
            f"{share:.2g} of their peak"
        )
    if schedules and clock.fresh_start == finished * clock.per_epoch > 0:
        text += (
            f". A finished run keeps no state of its optimizers (train.keep_optimizer=true keeps it), so they start "
            f"fresh, with rates that rise over {clock.rise} steps"
        )
    return f"{text}."


def device_of(name: str) -> torch.device:
    """Return the device that a recipe names; raises RecipeError where this machine does not have it."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device).tolist()  # fails on a device that is missing or, like meta, has no values
    except (RuntimeError, AssertionError):
        raise RecipeError(
            f"Expected a device that this machine has, got train.device = '{name}'; use cpu or auto."
        ) from None
    return device


def _rows(data: Dataset, team: Team) -> int:
    return max(2, data.num_rows("train", 0) // team.replicas)


def weight_copies(optimizer: OptimizerRecipe) -> int:
    """Return how often weights are in memory: themselves, their gradients, and the optimizer's slots."""
    return 4 if optimizer.name != "sgd" else 3 if optimizer.momentum > 0 else 2
