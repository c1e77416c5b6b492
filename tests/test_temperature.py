"""Temperatures against a scan of the loss, calibration errors by hand, and what a profile keeps of both."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from anytime_lct.analysis import measure
from anytime_lct.analysis.temperature import COLDEST, HOTTEST, Reliability, Temperatures
from anytime_lct.data import datasets
from anytime_lct.exits.profile import Profile
from anytime_lct.recipes import reading as recipes
from anytime_lct.run_folder.build import build_network


def drawn(sharpness: float, samples: int = 3000, classes: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits that are `sharpness` times those that the labels were drawn from: the temperature that suits them."""
    torch.manual_seed(seed)
    z = 2 * torch.randn(samples, classes)
    return sharpness * z, torch.multinomial(torch.softmax(z, dim=1), 1).squeeze(1)


@pytest.mark.parametrize("sharpness", [0.15, 0.7, 1.0, 3.0, 40.0])
def test_a_temperature_is_the_best_of_a_fine_scan(sharpness):
    Z, y = drawn(sharpness)
    fit = Temperatures()
    for part in range(0, 3000, 700):  # the last minibatch is short
        fit([Z[part : part + 700], -Z[part : part + 700]], y[part : part + 700])
    first, inverted = fit.values()
    scan = first * torch.linspace(0.95, 1.05, 2001, dtype=torch.float64)
    loss = torch.stack([F.cross_entropy(Z.double() / T, y) for T in scan])
    assert first == pytest.approx(float(scan[loss.argmin()]), rel=1e-3)
    assert first == pytest.approx(sharpness, rel=0.1)
    assert inverted == HOTTEST  # where the largest logit is the worst answer, no answer is the best


def test_text_counts_every_character():
    Z, y = drawn(2.0, samples=600)
    flat, in_windows = Temperatures(), Temperatures()
    flat([Z], y)
    in_windows([Z.view(20, 30, 7)], y.view(20, 30))
    assert in_windows.values() == pytest.approx(flat.values())


def test_temperatures_have_bounds():
    """Without an error the loss falls for ever as logits grow, which says nothing about how sure an answer is."""
    fit, faint = Temperatures(), Temperatures()
    fit([torch.eye(3), 10 * torch.eye(3)], torch.arange(3))
    assert fit.values() == [1.0, 1.0]
    faint([0.001 * torch.eye(3).repeat(9, 1)], torch.tensor([0, 1, 2] * 8 + [0, 1, 0]))
    assert faint.values() == [COLDEST]
    assert Temperatures().values() == []


def test_calibration_errors_by_hand():
    """Ten samples 73% sure, of which 5 are right; thirty 95% sure, all right; in halves, as two minibatches."""
    sure = torch.tensor([0.73] * 10 + [0.95] * 30)
    Z = torch.stack([sure, 1 - sure], dim=1).log()
    y = torch.tensor([0, 1] * 5 + [0] * 30)
    reliability = Reliability([1.0, 2.0])
    for part in (slice(0, 40, 2), slice(1, 40, 2)):
        reliability([Z[part], Z[part]], y[part])
    softer = torch.softmax(Z / 2, dim=1)[:, 0]
    bins = {0: abs(5 - softer[:10].sum()), 1: abs(30 - softer[10:].sum())}
    assert reliability.errors() == pytest.approx([(abs(5 - 7.3) + abs(30 - 28.5)) / 40, float(sum(bins.values())) / 40])


@pytest.fixture(scope="module")
def recipe():
    return recipes.complete(
        {"data": {"name": "digits"}, "model": {"name": "mlp", "hidden": [8, 8]}, "cut": {"groups": 2}}
    )


def test_a_profile_keeps_temperatures_fitted_on_validation(recipe):
    data = datasets.from_recipe(recipe)
    network = build_network(recipe, data.facts)
    profile = measure.profile(network, data, "mlp")
    by_hand, reliability = Temperatures(), Reliability([1.0, 1.0])
    with torch.no_grad():
        for x, y in data.batches("validation"):
            by_hand(network.eval()(x), y)
        for x, y in data.batches("test"):
            reliability(network(x), y)
    assert [exit.temperature for exit in profile.exits] == by_hand.values()
    assert [exit.calibration.before for exit in profile.exits] == reliability.errors()
    assert Profile.model_validate_json(profile.model_dump_json()) == profile


def test_without_a_validation_split_temperatures_stay_1(recipe):
    without = recipe.model_copy(update={"data": recipe.data.model_copy(update={"validation": 0.0})})
    data = datasets.from_recipe(without)
    profile = measure.profile(build_network(without, data.facts), data, "mlp")
    assert [exit.temperature for exit in profile.exits] == [1.0, 1.0]
    assert all(exit.calibration.before == exit.calibration.after for exit in profile.exits)


def test_graphs_are_measured_as_the_network_is(recipe):
    """What is measured again of exit 2 alone is what the network's profile says of it; exit 1 stays as it was."""
    data = datasets.from_recipe(recipe)
    network = build_network(recipe, data.facts).eval()
    profile = measure.profile(network, data, "mlp")
    other = profile.exits[0].model_copy(update={"temperature": 9.0})
    before = profile.model_copy(
        update={
            "exits": (other, profile.exits[1].model_copy(update={"temperature": 3.0})),
            "p_worse": ((0.5, 0.5),) * 2,
        }
    )
    with torch.no_grad():
        again = measure.remeasure(before, measure.predictor_evaluator(lambda x: [network(x)[1]], data), (2,), data)
    assert again.exits[0] == other
    assert again.exits[1] == profile.exits[1].model_copy(update={"latency": None})
    assert again.p_worse == ((0.5, 0.5), (0.5, 1.0))
    assert again.groups == profile.groups
