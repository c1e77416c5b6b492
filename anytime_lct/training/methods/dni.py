"""Decoupled neural interfaces: layer groups that step along synthetic gradients (Jaderberg et al., ICML 2017; Table I).

One minibatch, three groups. M_i predicts dL/dh_i from h_i (and the label); the next group computes its target:

    x -> f_1 -> h_1 -> f_2 -> h_2 -> f_3 -> loss         f_1, f_2 step along M_1, M_2, f_3 along the loss
                |  <- g_1     |  <- g_2                  g_i: the gradient at h_i through f_{i+1}, from M_{i+1} or the
               M_1           M_2                              loss; M_i minimises its mean squared distance to g_i
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anytime_lct.cutting.snapshot import seed_all
from anytime_lct.errors import CheckpointError, RecipeError
from anytime_lct.exits.tasks import TASKS
from anytime_lct.modes import probing
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import TEXT, Count, Positive, Recipe, Section
from anytime_lct.task import TaskName
from anytime_lct.training.learner import Learner, averaged, forward_pass, random_seed
from anytime_lct.training.methods.backprop import expect_finite
from anytime_lct.training.methods.joint import of_exits
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.objective import Objective
from anytime_lct.training.processes.team import Team
from anytime_lct.training.schedule import Clock

SEED_OFFSET = 15_485_863  # of the synthesizers' weights: others than the network's, from the same seed


class DNIRecipe(Section):
    """Synthetic gradients: whether their networks see labels beside h, their width, and the scale of their output."""

    labels: bool = True
    """Synthesizers see the labels beside h."""
    width: Count = 128
    """Channels of their hidden layers."""
    scale: Positive = 10.0
    """Factor of the gradients that they predict."""


def check(recipe: Recipe) -> None:
    """Raise RecipeError for a text, for which there are no synthetic gradients here."""
    if recipe.data.name in TEXT:
        raise RecipeError("Expected images with method dni, as in the paper, got a text; choose another method.")


class DNI:
    """Trains the groups of a network, without its critics, along synthetic gradients; its exit is the main output.

    A synthesizer predicts the gradient of a sample's own loss, times the recipe's `dni.scale`: that of the minibatch's
    mean loss is B times smaller, some 1e-6, where squares vanish beside the eps of Adam. The prediction is divided by
    both, and cast to the type of h_i, when the group steps. Synthesizers have the optimizer of the critics.
    """

    def __init__(self, network: LCTNetwork, recipe: Recipe, task: TaskName, clock: Clock, team: Team) -> None:
        _expect_images(task, network)
        self.task: TaskName = task
        self._objective = Objective(task, recipe.train)
        self._recipe, self._options = recipe, recipe.section("dni", DNIRecipe)
        self._main = LCTNetwork([nn.Sequential(*network.groups)], [])
        self._classes = _outputs(network, team.device) if self._options.labels else 0
        synthesizers = self._make(network.shapes, team.device)
        groups = (recipe.groups, recipe.groups_schedule)
        self._groups = [Learner(group, *groups, clock, recipe.train.average) for group in network.groups]
        self.synthesizers = [Learner(M, recipe.critics, recipe.critics_schedule, clock) for M in synthesizers]
        self._f = [forward_pass(group, recipe.train, clock) for group in network.groups]
        self.M = [forward_pass(M, recipe.train, clock) for M in synthesizers]

    def _make(self, shapes: Iterable[tuple[int, ...]], device: torch.device) -> list[nn.Sequential]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._recipe.train.seed + SEED_OFFSET)
            synthesizers = [synthesizer(shape, self._classes, self._options.width).to(device) for shape in shapes]
        if self._recipe.train.channels_last:
            synthesizers = [M.to(memory_format=torch.channels_last) for M in synthesizers]  # type: ignore[call-overload]
        return synthesizers

    @property
    def exits(self) -> tuple[int, ...]:
        return (1,)

    @property
    def learners(self) -> list[Learner]:
        return [*self._groups, *self.synthesizers]

    @property
    def forwards(self) -> list[nn.Module]:
        return [*self._f, *self.M]

    def start_epoch(self) -> None:
        for learner in self._groups:
            learner.start_epoch()

    def step(self, batch: Minibatch) -> Tensor:
        """Learn from one minibatch, group by group; return the loss of the last."""
        train = self._recipe.train
        seed_all(random_seed(train.seed, batch.step))
        per_sample, losses = len(batch.y) * self._options.scale, []
        for learner in self.synthesizers:  # one row has no batch statistics
            learner.module.train(len(batch.y) > 1)
        h, g = batch.x, None
        for i, learner in enumerate(self._groups):
            learner.begin(batch.step, len(batch.y))
            previous, g_previous = h, g
            h = self._f[i](previous)
            if i < len(self.M):
                g = self.M[i](self.with_labels(h.detach(), batch.y)).float()
                h.backward((g.detach() / per_sample).to(h.dtype))
            else:
                L = self._objective(h, batch.y).mean()
                L.backward()
                expect_finite(L, batch.step)
                losses.append(L.detach().double())
            if g_previous is not None and previous.grad is not None:
                self._learn(i - 1, g_previous, previous.grad.float() * per_sample, batch.step)
            learner.step(batch.step, train.clip_norm)
            h = h.detach().requires_grad_()
        return torch.stack(losses)

    def with_labels(self, h: Tensor, y: Tensor) -> Tensor:
        """Join the labels, one-hot or shares of classes, to h: as features (B, F + K), or maps (B, C + K, H, W)."""
        if not self._classes:
            return h
        labels = (F.one_hot(y, self._classes) if y.dim() == 1 else y).to(h.dtype)
        if h.dim() == 4:
            labels = labels[:, :, None, None].expand(-1, -1, *h.shape[2:])
        layout = torch.channels_last if h.dim() == 4 and self._recipe.train.channels_last else torch.contiguous_format
        return torch.cat([h, labels], dim=1).contiguous(memory_format=layout)

    def _learn(self, k: int, g: Tensor, target: Tensor, step: int) -> None:
        """Step synthesizer k (from 0) from its output g towards the gradient at its h; float32, times B and scale."""
        self.synthesizers[k].begin(step, len(g))
        F.mse_loss(g, target).backward()
        self.synthesizers[k].step(step, self._recipe.train.clip_norm)

    def evaluate(self, batches: Iterable[Minibatch]) -> Tensor:
        """Return the results of the main network (`Tally.results`)."""
        with averaged(self.learners):
            return of_exits(self._main, batches, self.task)

    def state(self) -> dict[int, dict[str, Tensor]]:
        states = {index: learner.state("main") for index, learner in enumerate(self._groups, start=1)}
        for index, learner in enumerate(self.synthesizers, start=1):
            states[index] |= learner.state("synthesizer")
        return states

    def load(self, states: dict[int, dict[str, Tensor]]) -> None:
        """Continue from what `state` returned; raises CheckpointError where it is of another network."""
        for kind, learners in (("main", self._groups), ("synthesizer", self.synthesizers)):
            for index, learner in enumerate(learners, start=1):
                try:
                    learner.load(kind, states[index])
                except CheckpointError as error:
                    raise CheckpointError(f"Layer group {index}: {error}") from None


def synthesizer(shape: tuple[int, ...], classes: int, width: int) -> nn.Sequential:
    """Make a network from a tensor of `shape` (C, H, W) or (F,), joined with `classes` labels, to one of `shape`.

    As in Jaderberg et al.: two hidden layers of `width` with batch norm, and a last one that starts at zero, so that
    the first predictions are zero. Maps keep their size.

    >>> synthesizer((300,), classes=10, width=64)(torch.rand(2, 310))
    tensor([[0., 0., ...
    """
    entry, layers = shape[0] + classes, list[nn.Module]()
    for _ in range(2):
        if len(shape) == 3:
            layers += [nn.Conv2d(entry, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        else:
            layers += [nn.Linear(entry, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        entry = width
    last = nn.Conv2d(width, shape[0], 3, padding=1) if len(shape) == 3 else nn.Linear(width, shape[0])
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(*layers, last)


def _outputs(network: LCTNetwork, device: torch.device) -> int:
    """Return the number of classes K, from the last group: (2, ..) to (2, K)."""
    if not network.shapes:
        return 0
    with probing(network.groups[-1]):
        return network.groups[-1](torch.zeros(2, *network.shapes[-1], device=device)).shape[-1]


def _expect_images(task: TaskName, network: LCTNetwork) -> None:
    odd = [shape for shape in network.shapes if len(shape) not in (1, 3)]
    if not TASKS[task].metric.of_hits or odd:
        actual = f"a hidden tensor of shape {('B', *odd[0])}".replace("'", "") if odd else f"the task {task}"
        raise RecipeError(
            f"Expected images with classes and a network of maps or vectors with method dni, which has no synthetic "
            f"gradients for others, got {actual}; train by lct or bp."
        )
