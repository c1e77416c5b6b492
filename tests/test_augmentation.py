"""Policies of torchvision: random numbers follow from seed, epoch and image alone."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2

from anytime_lct.data import datasets
from anytime_lct.data.augment import policy_of
from anytime_lct.data.images import ImageSet, in_memory, load_images
from anytime_lct.errors import DataError, RecipeError
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import DataRecipe
from anytime_lct.training.methods.table import checked

POLICIES = ["randaugment", "autoaugment", "trivialaugment"]


def pictures(channels=3, **keys):
    """A data set of 40 random pictures of 12 x 12 in 4 classes, 30 of them for training."""
    generator = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (40, channels, 12, 12), dtype=torch.uint8, generator=generator)
    part = in_memory(pixels, torch.arange(40) % 4)

    def read(recipe, root):
        return ImageSet(part, None, ("a", "b", "c", "d"))

    recipe = DataRecipe(**{"validation": 0.0, "test": 0.25, "batch_size": 8, "augment": "none", **keys})
    return load_images(read, recipe, seed=3)


def whole(dataset, split="train", epoch=1, start=0):
    return [torch.cat(parts) for parts in zip(*dataset.batches(split, epoch, start), strict=True)]


@pytest.mark.parametrize("policy", POLICIES)
def test_what_a_policy_does_to_an_image_follows_from_seed_epoch_and_image(policy):
    dataset = pictures(policy=policy)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    x, y = whole(dataset)
    for other in (whole(pictures(policy=policy, batch_size=5)), whole(dataset)):
        assert torch.equal(x, other[0]) and torch.equal(y, other[1])
    assert torch.equal(x[16:], whole(dataset, start=2)[0])
    assert torch.equal(torch.get_rng_state(), state)
    plain = pictures()
    assert torch.equal(whole(dataset, "test")[0], whole(plain, "test")[0])
    again = whole(dataset, epoch=2)[0]
    changed = [not torch.equal(a, b) for a, b in zip(x, whole(plain)[0], strict=True)]
    assert sum(changed) > 15 and not torch.equal(x, again)


def test_processes_that_read_change_images_alike():
    alone, shared = (whole(pictures(policy="randaugment", workers=number)) for number in (0, 2))
    assert torch.equal(alone[0], shared[0]) and torch.equal(alone[1], shared[1])


def test_policies_are_those_of_torchvision():
    small, large = (3, 32, 32), (3, 224, 224)
    assert isinstance(policy_of("randaugment", small), v2.RandAugment)
    assert isinstance(policy_of("trivialaugment", small), v2.TrivialAugmentWide)
    sizes = [getattr(policy_of("autoaugment", shape), "policy", None) for shape in (small, large)]
    assert sizes == [v2.AutoAugmentPolicy.CIFAR10, v2.AutoAugmentPolicy.IMAGENET]
    assert len(whole(pictures(channels=1, policy="trivialaugment"))[0]) == 30


def test_data_that_a_policy_cannot_change_is_refused():
    with pytest.raises(DataError, match=r"Expected images of 1 or 3 channels with data\.policy = randaugment, .* 4;"):
        pictures(channels=4, policy="randaugment")
    with pytest.raises(DataError, match=r"Expected data\.policy for images only, got it for a text"):
        datasets.from_recipe(reading.read(None, {"data.name": "pydoc", "data.policy": "randaugment"}))
    tables = {"train": {"method": "admm"}, "data": {"name": "digits", "augment": "none", "policy": "autoaugment"}}
    with pytest.raises(RecipeError, match=r"Expected the same samples in every sweep of method admm, got data\.policy"):
        checked(reading.complete(tables))
