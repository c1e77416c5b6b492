"""Search the confidence at which a sample stops at each exit, within a mean budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anytime_lct.errors import AnalysisError
from anytime_lct.exits.budget import Flops, in_flops
from anytime_lct.exits.thresholds import MEASURES, NAME, Measure, ThresholdTable
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.paths import UNCHANGED, Changes


def thresholds(
    run: Path | str,
    mean_flops: Sequence[Flops],
    measures: Sequence[Measure] = MEASURES,
    *,
    changes: Changes = UNCHANGED,
) -> ThresholdTable:
    """Search a rule for each mean budget, by the best of `measures`, and add the rules to the run's thresholds.json.

    Returns the new rules. `changes` are where the run's data and network are now, if they have moved. Raises
    ProfileError for a run without a profile, AnalysisError for a language model or a run without validation data, and
    NothingFitsError.

    >>> thresholds("runs/fashion", [10e6, 15e6]).rules[0].at                           # doctest: +SKIP
    {1: 0.97, 3: 0.0}
    """
    from anytime_lct.analysis import measure, threshold_search  # training processes do not need it

    path = Path(run)
    opened_run = run_folder.open_run(path, changes)
    if why := opened_run.facts.row.no_rules:
        raise AnalysisError(
            f"Expected a network that classifies in '{run}', got {why}; pick one exit with: anytime-lct select {run}."
        )
    profile = run_folder.read_profile(path)
    data = opened_run.load_data()
    if not data.num_samples("validation"):
        raise AnalysisError(
            f"Expected validation data to search thresholds on, got a run without it in '{run}'; train with "
            f"--set data.validation=0.1."
        )
    exits = tuple(range(1, profile.num_groups + 1))
    temperatures = [exit.temperature for exit in profile.exits]
    evaluator = measure.network_evaluator(opened_run.network, data)
    held_out = threshold_search.collect(evaluator, "validation", exits, temperatures)
    test = threshold_search.collect(evaluator, "test", exits, temperatures)
    budgets = [in_flops(amount, profile.cost(profile.num_groups).flops) for amount in mean_flops]
    rules = [threshold_search.search(profile, held_out, test, budget, measures) for budget in budgets]
    file, network = path / NAME, run_folder.fingerprint(path, temperatures)
    old = ThresholdTable.load(file) if file.exists() else None
    empty = ThresholdTable(network=network, rules=())
    (old if old is not None and old.network == network else empty).extended(rules).save(file)
    return empty.extended(rules)
