"""Policies of torchvision, mixed images with their labels, and weights of classes: all follow from seed and step."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torchvision.transforms import v2

from anytime_lct import task as tasks
from anytime_lct.data import datasets
from anytime_lct.data.augment import policy_of
from anytime_lct.data.images import ImageSet, in_memory, load_images
from anytime_lct.errors import DataError, RecipeError
from anytime_lct.recipes import reading
from anytime_lct.recipes.recipe import DataRecipe, TrainRecipe
from anytime_lct.training.methods.table import checked
from anytime_lct.training.objective import Objective, weigh_classes
from anytime_lct.training.processes import links

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


MIXED = {"mixup": {"mixup": 0.4}, "cutmix": {"cutmix": 1.0}, "both": {"mixup": 0.4, "cutmix": 1.0}}


@pytest.mark.parametrize("keys", MIXED.values(), ids=MIXED.keys())
def test_images_and_labels_are_mixed_in_pairs_by_one_share(keys):
    batches, plain = (list(pictures(**options).batches("train", 1)) for options in (keys, {}))
    shares = set()
    for (x, soft), (images, y) in zip(batches, plain, strict=True):
        labels = torch.nn.functional.one_hot(y, 4).float()
        partners = torch.tensor([min(row ^ 1, len(y) - 1) for row in range(len(y))])
        row = next(row for row in range(len(y)) if y[row] != y[partners[row]])
        share = soft[row, y[row]].item()
        shares.add(round(share, 4))
        torch.testing.assert_close(soft, share * labels + (1 - share) * labels[partners])
        blend = share * images + (1 - share) * images[partners]
        from_partner = x == images[partners]
        boxed = bool((from_partner | (x == images)).all())
        assert boxed or torch.allclose(x, blend, atol=1e-5)
        if boxed:  # the box is as large as the labels say
            differs = images[row] != images[partners[row]]
            taken = (x[row] == images[partners[row]])[differs].float().mean().item()
            assert taken == pytest.approx(1 - share, abs=0.02)
    assert len(shares) == len(batches)


def test_mixed_minibatches_follow_from_seed_and_step_and_shares_of_replicas_are_those_of_the_whole():
    keys = {"mixup": 0.4, "cutmix": 1.0, "erase": 0.3, "batch_size": 7}
    dataset = pictures(**keys)
    batches = list(dataset.batches("train", 1))
    for start in (0, 3):
        again = dataset.batches("train", 1, start)
        assert all(
            torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(batches[start:], again, strict=True)
        )
    for count in (2, 3):
        parts = [list(dataset.batches("train", 1, 0, (number, count))) for number in range(count)]
        for whole_batch, *shares in zip(batches, *parts, strict=True):
            for side in (0, 1):
                assert torch.equal(whole_batch[side], torch.cat([share[side] for share in shares]))
    x, y = whole(dataset, "test")
    assert y.dtype == torch.int64 and torch.equal(x, whole(pictures(), "test")[0])
    assert not torch.equal(whole(dataset)[0], whole(dataset, epoch=2)[0])


def test_labels_of_floating_point_pass_links_bit_by_bit():
    h = torch.rand(3, 2, 4, 4).to(memory_format=torch.channels_last)
    for labels in (torch.rand(3, 10), torch.rand(3), torch.tensor([2, 0, 1])):
        message = links.Message(7, h, labels, flags=1, rows=3, joint=5)
        order = sorted(range(4), key=lambda d: -h.stride(d))
        flat = h.permute(order).reshape(-1)
        got = links._unpack(links._pack(message, order), flat)
        assert torch.equal(got.labels, labels) and got.labels.dtype == labels.dtype and torch.equal(got.tensor, h)


def test_losses_and_scores_of_mixed_labels_are_those_of_both_classes():
    Z, share = torch.randn(6, 4), 0.3
    y = torch.arange(6) % 4
    other, one_hot = (y + 1) % 4, torch.nn.functional.one_hot
    soft = share * one_hot(y, 4) + (1 - share) * one_hot(other, 4).float()
    for of in (Objective("classification", TrainRecipe(epochs=1)), partial(tasks.scores, "classification")):
        torch.testing.assert_close(of(Z, soft), share * of(Z, y) + (1 - share) * of(Z, other))
    weights = (1.0, 2.0, 4.0, 0.5)
    weighted = Objective("classification", TrainRecipe(epochs=1, class_weights=weights))
    plain = tasks.losses("classification", Z, y)
    torch.testing.assert_close(weighted(Z, y), torch.tensor(weights)[y] * plain)
    torch.testing.assert_close(weighted(Z, soft), share * weighted(Z, y) + (1 - share) * weighted(Z, other))


def test_class_weights_have_a_mean_of_one_over_the_training_images():
    def weights(chosen, labels):
        part = in_memory(torch.zeros(len(labels), 1, 4, 4, dtype=torch.uint8), torch.tensor(labels))
        recipe = reading.complete({"data": {"name": "digits"}, "train": {"class_weights": chosen}})
        images = ImageSet(part, part, ("a", "b", "c"))
        data = load_images(lambda *_: images, DataRecipe(validation=0.0), seed=0)
        return weigh_classes(recipe, data).train.class_weights

    assert weights("balanced", [0] * 6 + [1] * 3 + [2]) == pytest.approx((10 / 18, 10 / 9, 10 / 3), rel=1e-5)
    assert weights("balanced", [0] * 6 + [1] * 2) == pytest.approx((8 / 12, 2.0, 0.0), rel=1e-5)
    assert weights((1.0, 2.0, 3.0), [0, 0, 1, 2]) == pytest.approx((4 / 7, 8 / 7, 12 / 7), rel=1e-5)
    assert weights("none", [0, 1, 2]) == "none"
    with pytest.raises(
        RecipeError, match=r"a weight for each of 3 classes .*, got 2; name one each, in the order a, b, c"
    ):
        weights((1.0, 2.0), [0, 1, 2])
