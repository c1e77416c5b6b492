"""The update rule against autograd of the written-out equations, parameter by parameter."""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from anytime_lct import task as tasks
from anytime_lct.lct import MATCHING, Rule, descend

SEED = 5


class Steps(nn.Module):
    """A recurrent layer group: (B, T, F) to (B, T, units)."""

    def __init__(self, features: int, units: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, units, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x)[0]


def image_network() -> tuple[list[nn.Module], list[nn.Module], Tensor, Tensor, str]:
    torch.manual_seed(SEED)
    groups = [
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(6 * 9, 5)),
    ]
    critics = [
        nn.Sequential(nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 5)),
        nn.Sequential(nn.Flatten(), nn.Linear(6 * 9, 8), nn.Tanh(), nn.Linear(8, 5)),
    ]
    return groups, critics, torch.randn(7, 2, 6, 6), torch.randint(0, 5, (7,)), "classification"


def text_network() -> tuple[list[nn.Module], list[nn.Module], Tensor, Tensor, str]:
    torch.manual_seed(SEED)
    groups = [
        nn.Sequential(nn.Embedding(9, 4), Steps(4, 6)),
        Steps(6, 5),
        nn.Sequential(Steps(5, 5), nn.Linear(5, 9)),
    ]
    critics = [nn.Linear(6, 9), nn.Linear(5, 9)]
    return groups, critics, torch.randint(0, 9, (3, 8)), torch.randint(0, 9, (3, 8)), "language-model"


def written_out(groups, critics, x, y, task, rule):
    """Equations (1)-(8) literally: a whole graph, and torch.autograd.grad for each module's own loss."""
    loss = partial(tasks.losses, task)
    h, L = x, []
    for f, c in zip(groups, [*critics, nn.Identity()], strict=True):
        h = f(h.detach())
        L.append(loss(c(h), y))
    gradients = [
        torch.autograd.grad(L_i.mean(), list(f.parameters()), retain_graph=True)
        for f, L_i in zip(groups, L, strict=True)
    ]
    of_critics = []
    for (L_i, L_next), c in zip(pairwise(L), critics, strict=True):
        target = L_next.detach()
        difference = L_i - target if rule.form == "per-sample" else L_i.mean() - target.mean()
        if rule.matching == "l1":
            matching = difference.abs().mean()
        elif rule.matching == "l2":
            matching = (difference**2).mean()
        else:
            matching = torch.where(difference.abs() < 1, difference**2 / 2, difference.abs() - 0.5).mean()
        L_c = {"paper": matching, "mixed": matching + 0.5 * L_i.mean(), "cross-entropy": L_i.mean()}[rule.critic_loss]
        of_critics.append(torch.autograd.grad(L_c, list(c.parameters()), retain_graph=True))
    return gradients, of_critics, L


def by_the_rule(groups, critics, x, y, task, rule):
    loss = partial(tasks.losses, task)
    h, descents = x, []
    for f, c in zip(groups, [*critics, None], strict=True):
        descents.append(descend(f, c, h, y, loss, rule))
        h = descents[-1].h
    untouched = all(p.grad is None for c in critics for p in c.parameters())
    of_groups = [[p.grad.clone() for p in f.parameters()] for f in groups]
    for before, after in pairwise(descents):
        before.learn(after.L)
    still = all(
        torch.equal(a, p.grad)
        for f, old in zip(groups, of_groups, strict=True)
        for a, p in zip(old, f.parameters(), strict=True)
    )
    return of_groups, [[p.grad for p in c.parameters()] for c in critics], untouched, still, descents


@pytest.mark.parametrize("make", [image_network, text_network])
@pytest.mark.parametrize("form", ["per-sample", "scalar"])
@pytest.mark.parametrize("matching", list(MATCHING))
@pytest.mark.parametrize("critic_loss", ["paper", "mixed", "cross-entropy"])
def test_gradients_are_those_of_the_equations(make, form, matching, critic_loss):
    groups, critics, x, y, task = make()
    rule = Rule(form, matching, critic_loss, cross_entropy=0.5)
    expected_groups, expected_critics, L = written_out(copy.deepcopy(groups), copy.deepcopy(critics), x, y, task, rule)
    of_groups, of_critics, untouched, still, descents = by_the_rule(groups, critics, x, y, task, rule)
    assert untouched, "a critic learnt from its group's loss"
    assert still, "a group learnt from a critic's loss"
    for expected, gradients in zip([*expected_groups, *expected_critics], [*of_groups, *of_critics], strict=True):
        for e, g in zip(expected, gradients, strict=True):
            torch.testing.assert_close(g, e, rtol=1e-5, atol=1e-7)
    for descent, L_i in zip(descents, L, strict=True):
        torch.testing.assert_close(descent.L, L_i if form == "per-sample" else L_i.mean())
        assert not descent.L.requires_grad
        assert not descent.h.requires_grad


def test_what_is_sent_up_is_one_number_a_sample_or_one_in_all():
    groups, critics, x, y, task = image_network()
    loss = partial(tasks.losses, task)
    assert descend(groups[0], critics[0], x, y, loss, Rule("per-sample")).L.shape == (7,)
    assert descend(groups[0], critics[0], x, y, loss, Rule("scalar")).L.shape == ()


def test_the_scalar_form_of_l1_is_the_sign_times_the_critics_own_gradient():
    groups, critics, x, y, task = image_network()
    loss = partial(tasks.losses, task)
    L = loss(critics[0](groups[0](x)), y).mean()
    own = torch.autograd.grad(L, list(critics[0].parameters()))
    for target, sign in ((L.item() + 1, -1.0), (L.item() - 1, 1.0), (L.item(), 0.0)):
        critics[0].zero_grad()
        descend(groups[0], critics[0], x, y, loss, Rule("scalar")).learn(torch.tensor(target))
        for p, gradient in zip(critics[0].parameters(), own, strict=True):
            torch.testing.assert_close(p.grad, sign * gradient, rtol=1e-5, atol=1e-7)


def test_the_loss_of_text_is_6_divided_by_t():
    Z, y = torch.randn(2, 4, 3), torch.randint(0, 3, (2, 4))
    summed = torch.stack([-torch.log_softmax(Z[:, t], 1)[torch.arange(2), y[:, t]] for t in range(4)]).sum(0)
    torch.testing.assert_close(tasks.losses("language-model", Z, y), summed / 4)
    torch.testing.assert_close(tasks.scores("language-model", Z, y), summed / 4 / torch.log(torch.tensor(2.0)))
