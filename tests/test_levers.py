"""The experiment of benchmarks/levers.py: its rule and its costs against those of the toolkit."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from anytime_lct.counting import count
from anytime_lct.lct import LocalLoss, Rule
from anytime_lct.models import resnet

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import levers
import levers_networks as networks
import levers_training as training

TINY = networks.Trunk(((16, 4), (16, 1), (16, 1)), (1, 2, 3))
OPTIONS = training.Options(trunk="tiny", shares=(0.9, 0.9, 0.9), blocks=1)


@pytest.fixture(scope="module")
def batch():
    torch.manual_seed(0)
    return torch.randn(4, 3, 32, 32), torch.tensor([0, 3, 3, 9])


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return networks.build(TINY, OPTIONS.critics)


def test_the_trunk_and_its_exits_cost_what_the_toolkit_counts():
    trunk, critics, x = networks.TRUNKS["resnet14"], networks.Critics(), torch.zeros(1, 3, 32, 32)
    costs = networks.exit_costs(trunk, critics)
    assert costs[-1] == count(resnet.small((3, 32, 32), 10, depth=14), x).flops
    assert costs[1] == count(networks.build(trunk, critics, alone=2), x).flops


def gradients(network, batch, **options):
    options = replace(OPTIONS, **options)
    weights = [*network.parameters()]
    wanted = training.objectives(network, network, *batch, options)
    return training.gradients(wanted, weights)


def test_the_rule_is_that_of_the_toolkit(network, batch):
    x, y = batch
    for rule, critic_loss in (("own", "cross-entropy"), ("paper", "paper"), ("mixed", "mixed")):
        own = gradients(network, batch, rule=rule)
        network.zero_grad()
        parts, h = [], x
        for i, group in enumerate(network.groups):
            exit_i = torch.nn.Sequential(network.bodies[i], torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
            exit_i.append(network.heads[i])
            last = i == len(network.groups) - 1
            output = exit_i(group(h)) if last else group(h)
            loss = lambda Z, y: F.cross_entropy(Z, y, reduction="none")  # noqa: E731
            parts.append(LocalLoss(output, None if last else exit_i, y, loss, Rule(critic_loss=critic_loss)))
            h = parts[-1].h
        for part, behind in zip(parts, [*parts[1:], None], strict=True):
            part.descend()
            if behind:
                part.learn(behind.L)
        torch.testing.assert_close(own, [weight.grad for weight in network.parameters()], rtol=1e-3, atol=1e-5)


def test_gradients_that_reach_every_group_are_those_of_joint_losses(network, batch):
    joint, own = gradients(network, batch, rule="joint"), gradients(network, batch)
    torch.testing.assert_close(gradients(network, batch, reach=(1.0,) * 4), joint, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(gradients(network, batch, reach=(1.0,)), own, rtol=1e-3, atol=1e-5)


def test_every_setting_of_the_sweep_is_known():
    names = [name for group in levers.sweep("finewide") for name in group]
    assert len({levers.options_of(name, {"epochs": 3}) for name in names}) == len(names)


def test_minibatches_hold_every_image_once_moved_and_mirrored_with_its_label():
    torch.manual_seed(2)
    images, labels = torch.randint(256, (6, 32, 32, 3), dtype=torch.uint8), torch.arange(6)
    padded = F.pad(images, (0, 0, 4, 4, 4, 4))
    plain = (torch.zeros(3), torch.ones(3), torch.zeros(27, 27))
    data = training.Data((padded, labels), (images, labels), (images, labels), *plain)
    batches = training.Minibatches(data, replace(OPTIONS, batch=3), seed=0)
    batches.draw(0)
    seen = [batches.take(torch.tensor([step])) for step in (0, 1)]
    assert sorted(label for _, y in seen for label in y.tolist()) == list(range(6))
    for x, y in seen:
        for image, label in zip(x.permute(0, 2, 3, 1).byte(), y, strict=True):
            places = padded[label].unfold(0, 32, 1).unfold(1, 32, 1).permute(0, 1, 3, 4, 2).flatten(0, 1)
            assert any(torch.equal(place, image) or torch.equal(place.flip(1), image) for place in places)


def test_the_page_of_exits_says_what_was_measured():
    house = Path(__file__).parent.parent
    page = (house / "docs" / "exits.md").read_text(encoding="utf-8").splitlines()
    table = levers.table(levers.read_records(house / "benchmarks" / "results" / "levers.jsonl")).splitlines()[2:]
    measured = {(cells[0], cells[1]): cells for cells in map(cells_of, table)}
    rows = [cells_of(line) for line in page if line.startswith("| `")]
    assert len(rows) > 40
    for name, epochs, *cells in rows:
        _, _, seeds, cost, gain, _, test, *_ = measured[name.strip("`"), epochs]
        assert cells == [seeds, cost, gain, test], name
    reproduced = (house / "benchmarks" / "results" / "exits_small.md").read_text(encoding="utf-8").splitlines()
    for line in page:
        if "(JPEG) |" in line:
            assert any(row.startswith(line) for row in reproduced), line
    steps = json.loads((house / "benchmarks" / "results" / "training_cost.json").read_text(encoding="utf-8"))["steps"]
    text = " ".join(page)
    for method, where in (("lct", "a step of LCT takes"), ("bp", "without exits, takes")):
        rows = [row for row in steps if row["method"] == method]
        joint = [row for row in steps if row["method"] == "joint"]
        sentence = text[text.index(where) :].split(". ")[0]
        for row, other in zip(rows, joint, strict=True):
            assert f"{row['median_ratio']:.2f}" in sentence
            assert f"{row['peak_bytes'] / other['peak_bytes']:.2f}" in sentence
    joint, alone, two = json.loads(
        (house / "benchmarks" / "results" / "training_cost.json").read_text(encoding="utf-8")
    )["processes"]
    assert (
        f"takes {alone['median_ratio']:.2f} of the time of joint losses, and {two['median_ratio']:.2f} on two" in text
    )
    assert f"at most {two['peak_bytes'] / joint['peak_bytes']:.2f} of the memory" in text


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
