"""ADMM: a perceptron trained without gradients, by closed-form sub-steps ("Training Neural Networks Without Gradients:
A Scalable ADMM Approach", G. Taylor et al., ICML 2016).

Weights, pre-activations and activations of all samples are separate variables, coupled by penalties:

    minimise  l(z_L, y) + <z_L, lambda> + beta |z_L - W_L a_{L-1}|^2
              + sum_{l < L}  gamma |a_l - h(z_l)|^2 + beta |z_l - W_l a_{l-1}|^2,      h = ReLU, a_0 = x

A sweep minimises over one of them at a time: W_1, a_1, z_1, W_2, .., z_{L-1}, W_L, z_L; then lambda moves. Samples are
rows here, z_l is (B, n_l), and a bias is the last column of W_l, (n_l, n_{l-1} + 1), on a constant one beside a_{l-1}.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from anytime_lct import task as tasks
from anytime_lct.cutting.trace import Trace
from anytime_lct.errors import CheckpointError, RecipeError
from anytime_lct.exits.tasks import TASKS
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes.recipe import TEXT, Positive, Recipe, Section, TrainRecipe
from anytime_lct.task import TaskName
from anytime_lct.training.learner import load_module, module_state
from anytime_lct.training.methods.backprop import expect_finite
from anytime_lct.training.methods.joint import of_exits
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.team import Team
from anytime_lct.training.schedule import Clock

RIDGE = 1e-5  # share of the mean diagonal of a^T a, which is singular where pixels never change
KAIMING = 6**0.5  # from nn.Linear's initial deviation, 1 / sqrt(3 n), to Kaiming's, sqrt(2 / n)


class ADMMRecipe(Section):
    """Penalties of Taylor et al. (2016): `beta` on z = W a, `gamma` on a = h(z); sweeps before multipliers move."""

    beta: Positive = 1.0
    """Penalty on z = W a."""
    gamma: Positive = 100.0
    """Penalty on a = h(z)."""
    warmup: Annotated[int, Field(ge=0)] = 60
    """Sweeps before the multipliers move."""


def check(recipe: Recipe) -> None:
    """Raise RecipeError unless the samples are images, the same in every sweep, and weights are kept as they are."""
    if recipe.data.name in TEXT:
        raise RecipeError("Expected images with method admm, as in the paper, got a text; choose another method.")
    if recipe.data.augment != "none":
        raise RecipeError(
            f"Expected data.augment = none with method admm, which needs the same samples in every sweep, got "
            f"{recipe.data.augment}; set it."
        )
    if recipe.data.changes:
        raise RecipeError(
            f"Expected the same samples in every sweep of method admm, got data.{recipe.data.changes[0]}, which "
            f"changes them; leave it out."
        )
    for key in ("average", "accumulate", "class_weights"):
        value, default = getattr(recipe.train, key), TrainRecipe.model_fields[key].default
        if value != default:
            raise RecipeError(
                f"Expected a method of gradient steps with train.{key}, got admm with {value}; leave it out."
            )


class ADMM:
    """Trains a network of one group, an uncut perceptron; an epoch is a sweep over the whole training set.

    The variables start from a forward pass through the initialised network, with hidden weights scaled to Kaiming's
    deviation (those of `train.weights` are not scaled), and the samples stay those of the first minibatch. Optimizers
    and schedules of the recipe are not used.
    """

    def __init__(self, network: LCTNetwork, recipe: Recipe, task: TaskName, clock: Clock, team: Team) -> None:
        if not TASKS[task].metric.of_hits:
            raise RecipeError(
                f"Expected images with classes with method admm, as in the paper, got the task {task}; train by lct or "
                f"bp."
            )
        self.task: TaskName = task
        self._network, self._recipe = network, recipe
        self._options = recipe.section("admm", ADMMRecipe)
        self._model = network.groups[0]
        self._linears = linears(self._model)
        if clock.per_epoch > 1:
            raise RecipeError(
                f"Expected the whole training set in one minibatch with method admm, got {clock.per_epoch} minibatches "
                f"of data.batch_size = {recipe.data.batch_size}; raise it to the number of training samples or more."
            )
        self._a: list[Tensor] = []  # a_0 = x, a_1, .., a_{L-1}
        self._z: list[Tensor] = []  # z_1, .., z_L
        self._y, self._multiplier, self._gram = (torch.empty(0) for _ in range(3))
        self._sweep = 0

    @property
    def exits(self) -> tuple[int, ...]:
        return (1,)

    def start_epoch(self) -> None:
        """Do nothing: the variables carry everything from sweep to sweep."""

    @torch.no_grad()
    def step(self, batch: Minibatch) -> Tensor:
        """Sweep once over all variables; return the cross-entropy of the new network."""
        if not self._z:
            self._start(batch.x.flatten(1), batch.y)
        self._sweep_once()
        L = tasks.losses(self.task, self._model(self._a[0]), self._y, self._recipe.train.label_smoothing).mean()
        expect_finite(L, batch.step)
        return L.double().reshape(1)

    def _start(self, x: Tensor, y: Tensor) -> None:
        if self._recipe.train.weights is None:
            for linear in self._linears[:-1]:
                linear.weight.mul_(KAIMING)
        self._a, self._z, self._y = [x], [], y
        for linear in self._linears:
            self._z.append(linear(self._a[-1]))
            self._a.append(self._z[-1].relu())
        self._a.pop()
        self._multiplier = torch.zeros_like(self._z[-1])

    def _sweep_once(self) -> None:
        beta, gamma, a, z = self._options.beta, self._options.gamma, self._a, self._z
        W = [torch.cat([linear.weight, linear.bias[:, None]], 1) for linear in self._linears]
        if not len(self._gram):
            self._gram = gram(with_one(a[0]))  # of x, the same in every sweep
        last = len(W) - 1
        for l in range(last):  # noqa: E741
            W[l] = weights(a[l], z[l], self._gram if l == 0 else None)
            a[l + 1] = activations(W[l + 1], z[l + 1], z[l].relu(), beta, gamma)
            z[l] = hidden(forward(W[l], a[l]), a[l + 1], beta, gamma)
        W[last] = weights(a[last], z[last], self._gram if last == 0 else None)
        m = forward(W[last], a[last])
        z[last] = output(m, self._y, self._multiplier, beta)
        self._sweep += 1
        if self._sweep > self._options.warmup:
            self._multiplier = self._multiplier + 2 * beta * (z[last] - m)  # now -lambda is in the subdifferential of l
        for linear, W_l in zip(self._linears, W, strict=True):
            linear.weight.copy_(W_l[:, :-1])
            linear.bias.copy_(W_l[:, -1])

    def evaluate(self, batches: Iterable[Minibatch]) -> Tensor:
        """Return the results of the network (`Tally.results`)."""
        return of_exits(self._network, batches, self.task)

    def state(self) -> dict[int, dict[str, Tensor]]:
        """Return the weights as `main.NAME`, and every variable: `admm.x`, `admm.y`, `admm.z_1`, .., `admm.sweep`."""
        flat = module_state("main", self._model) | {"admm.sweep": torch.tensor(self._sweep)}
        if self._z:
            flat |= {"admm.x": self._a[0], "admm.y": self._y, "admm.lambda": self._multiplier}
            flat |= {f"admm.z_{number}": z for number, z in enumerate(self._z, start=1)}
            flat |= {f"admm.a_{number}": a for number, a in enumerate(self._a[1:], start=1)}
        return {1: flat}

    def load(self, states: dict[int, dict[str, Tensor]]) -> None:
        flat = states[1]
        load_module("main", self._model, flat)
        try:
            self._sweep = int(flat["admm.sweep"])
            if self._sweep:
                device, depth = self._linears[0].weight.device, len(self._linears)
                self._y, self._multiplier = flat["admm.y"].to(device), flat["admm.lambda"].to(device)
                self._z = [flat[f"admm.z_{number}"].to(device) for number in range(1, depth + 1)]
                self._a = [flat[name].to(device) for name in ("admm.x", *(f"admm.a_{k}" for k in range(1, depth)))]
        except KeyError as error:
            raise CheckpointError(f"The checkpoint is not one of method admm: {error} is missing.") from None


def linears(model: nn.Module) -> list[nn.Linear]:
    """Return the linear layers of a perceptron in order; raises RecipeError for any other network that fx follows."""
    steps = Trace.of(model).recording.steps
    used = [model.get_submodule(str(step.target)) if step.op == "call_module" else step for step in steps]
    names = [type(part).__name__ if isinstance(part, nn.Module) else part.name for part in used]
    linear_layers = [part for part in used if isinstance(part, nn.Linear) and part.bias is not None]
    expected = ["Linear", *["ReLU", "Linear"] * (len(linear_layers) - 1)]
    if names not in (expected, ["Flatten", *expected]):
        raise RecipeError(
            f"Expected a perceptron with method admm (Flatten, then Linear with ReLU between), "
            f"got {', '.join(dict.fromkeys(names))}; set model.name=mlp without dropout, or choose another method."
        )
    return linear_layers


def with_one(a: Tensor) -> Tensor:
    """Return (B, n + 1): every row with a constant 1 for the bias."""
    return nn.functional.pad(a, (0, 1), value=1.0)


def forward(W: Tensor, a: Tensor) -> Tensor:
    """Return W a, bias included."""
    return nn.functional.linear(a, W[:, :-1], W[:, -1])


def gram(a: Tensor) -> Tensor:
    """Return a^T a, (n, n), with the ridge on its diagonal."""
    product = a.T @ a
    product.diagonal().add_(RIDGE * product.diagonal().mean())
    return product


def weights(a: Tensor, z: Tensor, known_gram: Tensor | None = None) -> Tensor:
    """Return the W, bias last, that minimises |z - W a|^2, from products over all samples ("transpose reduction")."""
    product = torch.cat([a.T @ z, z.sum(0, keepdim=True)])
    return solve(gram(with_one(a)) if known_gram is None else known_gram, product).T


def activations(W: Tensor, z: Tensor, h: Tensor, beta: float, gamma: float) -> Tensor:
    """Return the a that minimises beta |z - W a|^2 + gamma |a - h|^2, z and W those of the layer above."""
    W, bias = W[:, :-1], W[:, -1]
    curvature = beta * W.T @ W
    curvature.diagonal().add_(gamma)
    return solve(curvature, (beta * (z - bias) @ W + gamma * h).T).T.contiguous()


def hidden(m: Tensor, a: Tensor, beta: float, gamma: float) -> Tensor:
    """Return the z that minimises gamma (a - ReLU(z))^2 + beta (z - m)^2 entrywise: the better of its two branches."""
    below, above = m.clamp(max=0), ((gamma * a + beta * m) / (gamma + beta)).clamp(min=0)
    cost_below = gamma * a.square() + beta * (below - m).square()
    cost_above = gamma * (a - above).square() + beta * (above - m).square()
    return torch.where(cost_below < cost_above, below, above)


def output(m: Tensor, y: Tensor, multiplier: Tensor, beta: float) -> Tensor:
    """Return the z that minimises l(z, y) + z lambda + beta (z - m)^2 entrywise.

    l is max(1 - z, 0) for the true class and max(z, 0) for any other: from the minimum of the other terms, z moves
    towards the hinge, at most up to it, and at most 1 / (2 beta).
    """
    true = nn.functional.one_hot(y, m.shape[1]).bool()
    z = m - multiplier / (2 * beta)
    step = 1 / (2 * beta)
    return torch.where(true, z + (1 - z).clamp(0, step), z - z.clamp(0, step))


def solve(A: Tensor, B: Tensor) -> Tensor:
    """Return A^-1 B for a symmetric positive definite A."""
    return torch.cholesky_solve(B, torch.linalg.cholesky(A))
