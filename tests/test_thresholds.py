"""Rules for stopping: against brute force where all thresholds can be tried, arithmetic by hand, and the command."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from bundles import make_profile

from anytime_lct.analysis import threshold_search
from anytime_lct.analysis.threshold_search import Samples, search, stopping_costs, stopping_rows
from anytime_lct.cli.main import run as program
from anytime_lct.errors import BudgetError, NothingFitsError
from anytime_lct.exits.thresholds import MEASURES, ThresholdTable

PROFILE = make_profile()  # exits cost 35, 100, 150 alone; by way of all before them 35, 105, 205


def samples(right: np.ndarray, sure: np.ndarray) -> Samples:
    values = {measure: np.asarray(sure, np.float32) for measure in MEASURES}
    return Samples((1, 2, 3), values, np.asarray(right, bool), np.ones(right.shape))


def random_samples(size: int, seed: int = 0) -> Samples:
    """Deeper exits can do harder samples: 70, 85 and 95 in a hundred; each is sure where it is far from its limit."""
    rng = np.random.default_rng(seed)
    reserve = np.array([[0.7], [0.85], [0.95]]) - rng.uniform(size=size) + 0.05 * rng.standard_normal((3, size))
    return samples(reserve + 0.05 * rng.standard_normal((3, size)) > 0, 1 / (1 + np.exp(-8 * reserve)))


def by_brute_force(held: Samples, budget: float) -> float:
    """The best accuracy of any visited exits and any thresholds that cost no more than the budget."""
    best, size = 0.0, held.correct.shape[1]
    for visits in (1, 2, 3):
        for visited in itertools.combinations((1, 2, 3), visits):
            costs = stopping_costs(PROFILE, visited)
            candidates = [np.append(np.unique(held.confidences["margin"][i - 1]), 2.0) for i in visited[:-1]]
            for thresholds in itertools.product(*candidates):
                at = dict(zip(visited, (*map(float, thresholds), 0.0), strict=True))
                stopped = stopping_rows(held, "margin", at)
                cost = sum(C * (stopped == i - 1).sum() for i, C in zip(visited, costs, strict=True))
                if cost <= budget * size:
                    best = max(best, float(held.correct[stopped, np.arange(size)].mean()))
    return best


def test_costs_of_stopping_by_hand():
    assert stopping_costs(PROFILE, (1, 2, 3)) == (30 + 5, 30 + 20 + 5 + 50, 30 + 20 + 100 + 5 + 50)
    assert stopping_costs(PROFILE, (1, 3)) == (35, 155)  # critic 2 is passed
    assert stopping_costs(PROFILE, (3,)) == (150,)


def test_a_sample_stops_where_it_is_sure_enough_at_first():
    held = samples(np.ones((3, 4)), np.array([[0.9, 0.5, 0.5, 0.5], [0.1, 0.7, 0.6, 0.6], [0.0, 0.0, 0.9, 0.0]]))
    assert stopping_rows(held, "margin", {1: 0.9, 2: 0.7, 3: 0.0}).tolist() == [0, 1, 2, 2]
    assert stopping_rows(held, "entropy", {2: 0.0}).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("budget", "wrong"), [(45, 100), (95, 600), (125, 1000)])
def test_who_should_stop_is_found_where_it_is_plain(budget, wrong):
    """Exit 3 is right on all, exit 1 on all but the least sure; as many of these pass as the budget holds for, by hand.

    The share pi of all samples at exit 3 that costs the budget may be larger than the share of these 1,200 by
    1.96 standard deviations of a share.
    """
    size = 1200
    sure, right = np.tile(np.linspace(0.99, 0.01, size), (3, 1)), np.ones((3, size))
    right[0, size - wrong :] = right[1, size - wrong :] = 0
    rule = search(PROFILE, samples(right, sure), samples(right, sure), budget)
    pi = (budget - 35) / 120
    passing = int(size * (pi - 1.95996 * (pi * (1 - pi) / size) ** 0.5))
    assert rule.at.keys() == {1, 3} and rule.p_value < 1e-6
    assert rule.shares == pytest.approx({1: 1 - passing / size, 3: passing / size})
    assert sure[0, size - passing] < rule.at[1] < sure[0, size - passing - 1]
    assert rule.cost.flops == pytest.approx(35 + 120 * passing / size)
    assert rule.accuracy.value == pytest.approx(1 - (wrong - passing) / size)
    assert rule.fixed == 1 and rule.fixed_accuracy.value == pytest.approx(1 - wrong / size)


@pytest.mark.parametrize("budget", [70.0, 80.0, 95.0])
def test_as_good_as_any_exits_and_thresholds_but_for_one_sample(budget):
    """Trying all of them at the rule's own cost fits the noise of 70 samples, which the search does not."""
    held = random_samples(70)
    rule = search(PROFILE, held, held, budget)
    best = by_brute_force(held, rule.cost.flops)
    assert len(rule.at) > 1 and best - 0.03 <= rule.accuracy.value <= best


@pytest.mark.parametrize("budget", [40.0, 60.0, 100.0, 140.0])
def test_a_rule_holds_its_budget_on_other_samples(budget):
    held = random_samples(6000, seed=1)
    rule = search(PROFILE, held, random_samples(100_000, seed=2), budget)
    assert 0.95 * budget < rule.cost.flops < budget
    assert rule.cost.low < rule.cost.flops < rule.cost.high
    assert sum(rule.shares.values()) == pytest.approx(1.0)
    assert rule.accuracy.value > rule.fixed_accuracy.value
    assert all(float(np.float32(threshold)) == threshold for threshold in rule.at.values())


def test_at_most_one_rule_in_twenty_exceeds_its_budget_by_chance():
    """Over draws of 200 validation samples, on 20,000 others; with the budget spent in full it would be every other."""
    other = random_samples(20_000, seed=99)
    rules = [search(PROFILE, random_samples(200, seed), other, 95.0, ("margin",)) for seed in range(40)]
    assert all(len(rule.at) > 1 for rule in rules)
    assert sum(rule.cost.flops > 95.0 for rule in rules) <= 5  # more have a probability of 1% at one in twenty
    assert np.mean([rule.cost.flops for rule in rules]) > 80.0


def test_a_rule_that_is_no_better_than_an_exit_is_not_offered():
    """Exits that err independently of how sure they are: the best of many rules is better by chance alone."""
    rng, rules = np.random.default_rng(5), []
    for _ in range(20):
        sure = rng.uniform(0.01, 0.99, (3, 300))
        right = (rng.uniform(size=300) < 0.8) ^ (rng.uniform(size=(3, 300)) < 0.05)
        held = samples(right, sure)
        rules.append(search(PROFILE, held, held, 120.0))
    offered = [rule for rule in rules if len(rule.at) > 1]
    rejected = [rule.p_value for rule in rules if len(rule.at) == 1 and rule.p_value is not None]
    assert len(offered) <= 3 and all(rule.p_value < 0.05 for rule in offered)
    assert len(rejected) >= 5 and min(rejected) >= 0.05
    assert all(rule.at == {rule.fixed: 0.0} and rule.cost.flops <= 120.0 for rule in rules if rule not in offered)


def test_an_exit_that_is_worse_than_an_earlier_one_is_not_visited():
    """Exit 2 is worse than exit 1, though surer of itself; exit 3 is the best."""
    held = random_samples(2000)
    right = held.correct.copy()
    right[1] = right[0] & (np.arange(2000) % 50 > 0)
    rule = search(PROFILE, samples(right, held.confidences["margin"]), random_samples(500, seed=3), 120.0)
    assert rule.at.keys() == {1, 3}


def test_the_measure_that_tells_most_is_found():
    held = random_samples(3000)
    noise = np.random.default_rng(3).uniform(0.01, 0.99, held.correct.shape).astype(np.float32)
    mixed = Samples(held.exits, {"max-probability": noise, "margin": held.confidences["margin"], "entropy": noise}, *[
        held.correct, held.losses,
    ])  # fmt: skip
    assert search(PROFILE, mixed, mixed, 90.0).measure == "margin"
    assert search(PROFILE, mixed, mixed, 90.0, ("entropy",)).accuracy.value < (
        search(PROFILE, mixed, mixed, 90.0).accuracy.value
    )


def test_a_single_exit_is_taken_where_nothing_is_better():
    held = random_samples(300)
    alike = Samples(held.exits, held.confidences, np.ones((3, 300), bool), held.losses)  # all exits are right on all
    assert search(PROFILE, alike, alike, 149.0).at == {1: 0.0}
    assert search(PROFILE, held, held, 1000.0).at == {3: 0.0}  # a budget that cannot be spent
    assert search(PROFILE, held, held, 35.0).at == {1: 0.0}


def test_equal_confidences_do_not_break_the_budget():
    held = random_samples(1000)
    coarse = Samples(held.exits, {m: (held.confidences[m] > 0.5).astype(np.float32) for m in MEASURES}, *[
        held.correct, held.losses,
    ])  # fmt: skip
    for budget in (40.0, 90.0, 140.0):
        assert search(PROFILE, coarse, coarse, budget).cost.flops <= budget
    assert threshold_search.threshold_between(np.full(5, 1.0, np.float32), 2) == 1.0
    assert threshold_search.threshold_between(np.float32([0.2, 0.2, 0.2, 0.8]), 2) == float(np.float32(0.2))
    assert threshold_search.threshold_between(np.float32([0.2, 0.8, 0.8, 0.8]), 2) == float(np.float32(0.8))
    assert threshold_search.threshold_between(np.float32([0.2, 0.8]), 1) == pytest.approx(0.5)


def test_a_budget_that_nothing_fits_is_refused():
    held = random_samples(50)
    with pytest.raises(NothingFitsError, match="exit 1 needs 35 FLOPs"):
        search(PROFILE, held, held, 34.0)
    with pytest.raises(BudgetError, match="positive finite number"):
        search(PROFILE, held, held, float("nan"))


def test_a_table_keeps_other_budgets_and_serves_known_exits():
    held = random_samples(500)
    rules = {budget: search(PROFILE, held, held, budget) for budget in (50.0, 90.0, 140.0)}
    table = ThresholdTable(network="n", rules=(rules[90.0],)).extended([rules[140.0], rules[50.0]])
    assert [rule.mean_flops for rule in table.rules] == [50.0, 90.0, 140.0]
    other = search(PROFILE, held, held, 90.0, ("entropy",))
    assert table.extended([other]).rules == (rules[50.0], other, rules[140.0])
    of_two = table.of_exits((1, 3)).rules
    assert of_two == tuple(rule for rule in table.rules if 2 not in rule.at)


OPTIONS = "--data digits --model mlp --set model.hidden=12,12 --groups 3 --epochs 2 --json --run-dir"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thresholds") / "run"
    assert called("train", *OPTIONS.split(), folder) == called("analyze", folder, "--json") == 0
    return folder


def called(*arguments: object) -> int:
    try:
        program([str(argument) for argument in arguments])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_command_writes_what_it_says_and_keeps_what_it_wrote(run: Path, capsys: pytest.CaptureFixture[str]):
    from anytime_lct.exits.profile import Profile

    profile = Profile.load(run)
    first, second = (f"{(profile.cost(i).flops + profile.cost(i + 1).flops) / 2:.0f}" for i in (1, 2))
    assert called("thresholds", run, "--mean-flops", first, "--measure", "margin", "--json") == 0
    rules = json.loads(capsys.readouterr().out)["rules"]
    assert [(rule["mean_flops"], rule["accuracy"]["samples"]) for rule in rules] == [(float(first), 360)]
    assert called("thresholds", run, "--mean-flops", second) == 0
    assert "Rules for stopping" in capsys.readouterr().out
    table = ThresholdTable.load(run / "thresholds.json")
    assert [rule.mean_flops for rule in table.rules] == [float(first), float(second)]
    assert json.loads(table.rules[0].model_dump_json()) == rules[0]

    assert called("thresholds", run, "--mean-flops", "10M") == 0
    assert "M: no rule is significantly better than exit " in capsys.readouterr().out
    ThresholdTable(network="another", rules=table.rules).save(run / "thresholds.json")
    assert called("thresholds", run, "--mean-flops", second) == 0  # rules of other weights do not stay
    assert [rule.mean_flops for rule in ThresholdTable.load(run / "thresholds.json").rules] == [float(second)]


def test_the_command_complains_in_one_sentence(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    capsys.readouterr()
    text, without = tmp_path / "text", tmp_path / "without"
    small = "--model lstm --data pydoc --set model.units=8 --set model.layers=2 --groups 2 --epochs 1".split()
    assert called("train", *small, "--set", "data.sequence_length=40", "--json", "--run-dir", text) == 0
    assert called("train", *OPTIONS.split(), without, "--set", "data.validation=0") == 0
    assert called("analyze", without, "--json") == 0
    capsys.readouterr()
    for code, says, arguments in (
        (3, "cheapest exit", [run, "--mean-flops", "2"]),
        (2, "a count like 20M", [run, "--mean-flops", "20Q"]),
        (2, "--measure", [run, "--mean-flops", "1k", "--measure", "luck"]),
        (2, "got a language model", [text, "--mean-flops", "20k"]),
        (2, "validation data", [without, "--mean-flops", "20k"]),
        (2, "which has no recipe.toml", [tmp_path / "absent", "--mean-flops", "20k"]),
    ):
        assert called("thresholds", *arguments) == code
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1) and says in err
