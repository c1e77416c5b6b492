"""What a training step minimises: the task's loss of every sample, with smoothed labels and weights of classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from anytime_lct import task as tasks
from anytime_lct.data.batches import Dataset, ImageBatches
from anytime_lct.errors import RecipeError
from anytime_lct.recipes.recipe import Recipe, TrainRecipe
from anytime_lct.task import TaskName


class Objective:
    """The loss of every sample, (B,), of outputs and labels, as all exits have it: l of (1), for (5) too.

    With class weights w it is -sum_k w_k y_k log p_k, whose mean is over the samples, not over their weights: so the
    losses of samples add up alike in any minibatch, on any number of replicas.

    >>> weighted = Objective("classification", TrainRecipe(epochs=1, class_weights=(1.0, 3.0)))
    >>> weighted(torch.zeros(2, 2), torch.tensor([0, 1])) / math.log(2)
    tensor([1., 3.])
    """

    def __init__(self, task: TaskName, train: TrainRecipe) -> None:
        if train.class_weights == "balanced":
            raise RecipeError(
                "Expected a weight for each class as train.class_weights of your own minibatches, whose labels are not "
                "counted, got balanced; name the weights."
            )
        self._task: TaskName = task
        self._smoothing = train.label_smoothing
        self._weights = None if train.class_weights == "none" else torch.tensor(train.class_weights)

    def __call__(self, Z: Tensor, y: Tensor) -> Tensor:
        if self._weights is None:
            return tasks.losses(self._task, Z, y, self._smoothing)
        expect_weights(len(self._weights), Z.shape[1])
        self._weights = self._weights.to(Z.device)
        return F.cross_entropy(Z.float(), y, self._weights, reduction="none", label_smoothing=self._smoothing)


def weigh_classes(recipe: Recipe, data: Dataset) -> Recipe:
    """Return a recipe with its class weights as numbers, whose mean over the training images is 1.

    The weight of a class is "balanced" n / (K n_k), for n_k of n images in one of K classes. Raises RecipeError.
    """
    chosen = recipe.train.class_weights
    if chosen == "none":
        return recipe
    if not isinstance(data, ImageBatches) or data.facts.task != "classification":
        raise RecipeError(
            f"Expected images and their classes with train.class_weights, got the task {data.facts.task}; leave it out."
        )
    images, indices = data.parts["train"]
    counts = torch.bincount(images.labels.cpu()[indices], minlength=data.facts.outputs).double()
    if chosen == "balanced":
        weights = torch.where(counts > 0, 1 / counts, 0.0)
    else:
        expect_weights(len(chosen), len(counts), data.facts.classes)
        weights = torch.tensor(chosen, dtype=torch.float64)
    weights *= counts.sum() / (weights * counts).sum()
    numbers = tuple(float(f"{weight:.6g}") for weight in weights.tolist())
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"class_weights": numbers})})


def expect_weights(count: int, classes: int, names: tuple[str, ...] = ()) -> None:
    """Raise RecipeError unless there are as many weights as classes."""
    if count != classes:
        order = f", in the order {', '.join(names[:3])}{', ..' if len(names) > 3 else ''}" if names else ""
        raise RecipeError(
            f"Expected a weight for each of {classes} classes as train.class_weights, got {count}; name one "
            f"each{order}."
        )
