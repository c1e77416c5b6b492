"""Deal the layer groups out: fix where a run cuts its network, and which worker owns which groups."""

from __future__ import annotations

from anytime_lct import costs, run_folder
from anytime_lct.costs import Others, Strategy
from anytime_lct.data import Dataset
from anytime_lct.network import LCTNetwork, choose_places
from anytime_lct.placement import spread
from anytime_lct.recipe import CUTS, OptimizerRecipe, Recipe
from anytime_lct.training.team import Team


def deal(recipe: Recipe, data: Dataset, team: Team, place: Strategy | None = None) -> tuple[LCTNetwork, Recipe]:
    """Return the network, cut, and the recipe with its places; set the team's bounds.

    Where the cut depends on this machine (measured, by all processes side by side) or on whether there are several
    workers (memory), it is chosen once, and the recipe that goes into the run folder names the places. `place` says
    what is evened out between workers; by default what the cut evens out, and training cost where that is layers.
    """
    recipe = _fixed(recipe, data, team)
    network = run_folder.build_network(recipe, data.facts, stages=True)
    if not team.bounds:
        by = place or ("balanced" if recipe.cut.by == "layers" else recipe.cut.by)
        bounds = (0, network.num_groups)
        if team.workers > 1 and team.leads:
            rows = _rows(data, team) if by != "balanced" else 2
            example = run_folder.example_input(data.facts, rows)
            critics = list(network.critics) if recipe.train.method == "lct" else []
            table = costs.of_workers(list(network.groups), critics, example, by, _weight_copies(recipe.groups))
            bounds = spread(table, team.workers)
        team.bounds = tuple(team.share(bounds))
    return network, recipe


def _fixed(recipe: Recipe, data: Dataset, team: Team) -> Recipe:
    cut = recipe.cut
    chosen_now = cut.by in ("measured", "memory")
    if cut.places or cut.shares or cut.groups == 1 or not chosen_now or recipe.train.method not in CUTS:
        return recipe
    places: tuple[str, ...] = ()
    if team.leads or cut.by == "measured":
        example = run_folder.example_input(data.facts, _rows(data, team)).to(team.device)
        places = choose_places(
            run_folder.build_model(recipe, data.facts).to(team.device),
            example,
            num_groups=cut.groups,
            by=cut.by,
            critic=recipe.critic.kind,
            depth=recipe.critic.depth,
            task=data.facts.task,
            weight_copies=_weight_copies(recipe.groups) if team.workers > 1 else 0,
            others=Others(team.rank, team.mean),
        )
    places = tuple(team.share(places))
    return recipe.model_copy(update={"cut": cut.model_copy(update={"places": places})})


def _rows(data: Dataset, team: Team) -> int:
    return max(2, data.num_rows("train", 0) // team.replicas)


def _weight_copies(optimizer: OptimizerRecipe) -> int:
    """Weight, gradient, and what the optimizer keeps of each."""
    return 4 if optimizer.name != "sgd" else 3 if optimizer.momentum > 0 else 2
