"""The settings that experiments are made of, data set, network and recipe, at two scales.

paper   Section V of the paper, for a machine with GPUs: its data sets, networks, iterations and schedules
small   for two CPU cores: the same code on smaller networks, free data sets and some ten epochs
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from anytime_lct.reproduce.plan import Given, Scale, merged


@dataclass(frozen=True)
class Setting:
    """A data set with a network and a recipe. `of_paper` is the row of the paper's tables that it is held against.

    `methods` has what a method needs besides, `of_memory` and `of_complexity` the rows in Tables VI and VIII, X.
    """

    key: str
    name: str
    given: Given
    of_paper: str = ""
    of_memory: str = ""
    of_complexity: str = ""
    papers_critic: str = "paper"
    papers_places: tuple[str, ...] = ()
    methods: dict[str, Given] = field(default_factory=dict)

    @property
    def is_cifar10(self) -> bool:
        return "CIFAR-10" in self.of_paper and "CIFAR-100" not in self.of_paper


DIFFERS: dict[Scale, tuple[str, ...]] = {
    "paper": (
        "205 epochs of 391 minibatches on CIFAR are 80,155 iterations, where the paper has 80,000.",
        "The Penn Treebank comes in its published parts; enwik8 is cut 90/5/5 and read as characters, not bytes.",
        "The authors scale the weight decay of groups 1..N-1 by accident and choose checkpoints on the test set; "
        "neither is copied: weights are those of the last epoch.",
    ),
    "small": (
        "ResNet-20 instead of ResNet-50, 16, 32 and 64 channels wide.",
        "Trained in bfloat16 on machines that multiply it in tiles (AMX, GPUs), in float32 on others; the JSON says "
        "which figure came from which.",
        "CIFAR-10 (JPEG), re-encoded with loss, and Fashion-MNIST instead of CIFAR-10, CIFAR-100 and ImageNet; the "
        "King James Bible instead of the Penn Treebank and enwik8.",
        "8 epochs with a one-cycle rate (images) or 4 (text) instead of 80,000 iterations or 100 epochs; a tenth of "
        "the training images, a twentieth of the text, is held out for validation. Test is looked at once, at the end.",
        "Images by the toolkit's default critics (residual, own loss); the table `critics` has the paper's rule. Text "
        "by the paper's rule and linear critics, by their own loss, and by the default, own loss and 3 layers.",
        "The paper's figure beside ours is that of its own network on its own data: only the order and the gaps "
        "between methods can be compared.",
    ),
}
PAPERS_RULE: Given = {
    "critic": {"kind": "paper", "depth": 1},
    "rule": {"form": "per-sample", "matching": "l1", "critic_loss": "paper"},
}
PAPERS_CRITICS: Given = {
    "critics": {"name": "adam", "lr": 1e-4, "weight_decay": 0.0},
    "critics_schedule": {"name": "constant"},
}
# Section V-B; image folders hold ImageNet in torchvision's layout. Validation: none, as nothing is chosen.
CIFAR: Given = merged(PAPERS_RULE, PAPERS_CRITICS, {"train": {"epochs": 205}, "data": {"validation": 0.0}})
IMAGENET: Given = merged(
    PAPERS_RULE,
    PAPERS_CRITICS,
    {
        "data": {"name": "imagefolder", "root": "imagenet", "batch_size": 32, "image_size": 224, "validation": 0.0},
        "train": {"epochs": 75},
        "groups": {"name": "sgd", "lr": 0.0125, "momentum": 0.9, "weight_decay": 5e-4},
        "groups_schedule": {"name": "step", "milestones": [23 / 75, 40 / 75, 60 / 75, 70 / 75], "gamma": 0.1},
        "critic": {"kind": "paper-imagenet", "depth": 1},
    },
)
PTB: Given = merged(PAPERS_RULE, {"data": {"name": "text", "path": "text/ptb"}})
ENWIK8: Given = {
    **merged(PAPERS_RULE, {"data": {"name": "text", "path": "text/enwik8"}, "train": {"epochs": 50}}),
    "groups": {"name": "adam", "lr": 1e-4, "weight_decay": 1.2e-5},
    "groups_schedule": {"name": "constant"},
    "critics": {"name": "adam", "lr": 1e-4},
    "critics_schedule": {"name": "constant"},
}
PLACES: dict[int, tuple[str, ...]] = {  # of LCT_n3, as the parameters of Table VIII tell
    50: ("layer1", "layer2", "layer3"),
    101: ("layer2", "layer3.7", "layer3.15"),
}
UNITS = {2: 950, 3: 750, 4: 600}


def fast_precision(cpu: Path = Path("/proc/cpuinfo")) -> str:
    """Name the precision in which this machine trains fastest: without tiles, bfloat16 is slower than float32."""
    tiles = torch.cuda.is_available() or (cpu.exists() and "amx_bf16" in cpu.read_text(encoding="utf-8"))
    return "bfloat16" if tiles else "float32"


SMALL_IMAGES: Given = {
    "model": {"name": "resnet20"},
    "train": {"epochs": 8, "precision": fast_precision(), "channels_last": True},
    "groups_schedule": {"name": "one-cycle"},
    "critics_schedule": {"name": "one-cycle"},
}
ADAM: Given = {
    "critics": {"name": "adam", "lr": 1e-3, "weight_decay": 0.0},
    "critics_schedule": {"name": "cosine"},
}
SMALL_DATA: dict[str, tuple[str, Given]] = {
    "cifar10-jpeg": ("CIFAR-10 (JPEG)", {"data": {"name": "imagefolder", "root": "cifar10-jpeg"}}),
    "fashion-mnist": ("Fashion-MNIST", {"data": {"name": "fashion-mnist", "augment": "crop-flip"}}),
}
SMALL_UNITS = {2: 190, 3: 150, 4: 120}
SMALL_TEXT: Given = {
    **PAPERS_RULE,
    "data": {"name": "text", "path": "text/kjv.txt", "batch_size": 64, "sequence_length": 100},
    "train": {"epochs": 4, "clip_norm": 1.0, "precision": fast_precision()},
    "groups": {"name": "adam", "lr": 4e-3, "weight_decay": 0.0},
    "groups_schedule": {"name": "one-cycle"},
    "critics": {"name": "adam", "lr": 4e-3},
    "critics_schedule": {"name": "one-cycle"},
}
TRACKED: dict[str, Given] = {"lct": {"train": {"track_descent": 50}}}
SMALL_METHODS: dict[str, Given] = {**TRACKED, "dni": merged(ADAM, {"dni": {"width": 32}})}
# Chosen on MNIST's validation split. All take the same augmentation, none, so that ADMM, which needs one set of
# samples throughout, can take part.
PERCEPTRON: Given = merged(
    PAPERS_RULE,
    ADAM,
    {
        "model": {"name": "mlp", "hidden": [300, 150]},
        "data": {"augment": "none"},
        "train": {"epochs": 20},
        "groups_schedule": {"name": "one-cycle"},
    },
)
PERCEPTRON_METHODS: dict[str, Given] = {
    "lct": {"train": {"clip_norm": 1.0}},  # without it the paper's rule ends at half the accuracy on Fashion-MNIST
    "admm": {"data": {"batch_size": 60_000}, "train": {"epochs": 60}},
    "dni": {"dni": {"scale": 100.0}, "critics_schedule": {"name": "constant"}},
    "dni-no-labels": {"dni": {"width": 512}, "groups": {"lr": 0.01}},
}
OF_PERCEPTRONS = (
    "Networks and MNIST are the paper's; Fashion-MNIST stands in for CIFAR-10 in the small scale. The paper does not "
    "give its recipe: ours is 20 epochs of minibatches of 128, SGD at a one-cycle rate up to 0.1, critics by Adam.",
    "A tenth of the training images is held out; settings were chosen on that part, MNIST's but for LCT's gradients, "
    "which are clipped at a norm of 1: unclipped, (5) lost its way on Fashion-MNIST.",
    "ADMM: beta 1, gamma 100, 60 sweeps over all samples, multipliers never moved. DNI: gradients scaled by 100, two "
    "hidden layers of 128 units; without labels 512 and a rate of 0.01 for the groups.",
)
# What critics are and learn, each against the default of `anytime-lct train`, which is the first.
RESIDUAL: Given = {"critic": {"kind": "residual", "depth": [3, 2, 1]}}
SLIM_BY_SGD: Given = {"critic": {"kind": "slim", "depth": 2}}
SLIM: Given = merged(ADAM, SLIM_BY_SGD)
OWN: Given = {"rule": {"critic_loss": "cross-entropy"}}
TEXT_DEFAULT: Given = merged(OWN, {"critic": {"kind": "slim", "depth": 3}})
MIXED: Given = {"rule": {"critic_loss": "mixed"}}
PLAIN: Given = {"rule": {"critic_loss": "paper"}}
SCALAR: Given = {"rule": {"form": "scalar"}}
CRITICS: dict[str, tuple[str, Given]] = {
    "residual critics, own loss (default)": ("residual-own", merged(RESIDUAL, OWN)),
    "residual critics, (5) per sample + own loss": ("residual-mixed", merged(RESIDUAL, MIXED)),
    "residual critics, (5) scalar + own loss": ("residual-mixed-scalar", merged(RESIDUAL, MIXED, SCALAR)),
    "residual critics, (5) per sample": ("residual-plain", merged(RESIDUAL, PLAIN)),
    "residual critics, (5) scalar": ("residual-plain-scalar", merged(RESIDUAL, PLAIN, SCALAR)),
    "residual critics, (5) per sample, by Adam": ("residual-plain-adam", merged(RESIDUAL, ADAM, PLAIN)),
    "slim critics, own loss": ("slim-own", merged(SLIM, OWN)),
    "slim critics, own loss, by SGD": ("slim-own-sgd", merged(SLIM_BY_SGD, OWN)),
    "slim critics, (5) per sample + own loss": ("slim-mixed", merged(SLIM, MIXED)),
    "slim critics, (5) per sample": ("slim-plain", merged(SLIM, PLAIN)),
    "slim critics, (5) scalar": ("slim-plain-scalar", merged(SLIM, PLAIN, SCALAR)),
    "the paper's critics, (5) per sample": ("paper-plain", merged(ADAM, PAPERS_RULE)),
    "the paper's critics, (5) scalar": ("paper-plain-scalar", merged(ADAM, PAPERS_RULE, SCALAR)),
}


def short(scale: Scale) -> Setting:
    """Return the setting in which critics are compared: the first of the images', and half as long when small."""
    setting = images(scale)[0]
    epochs = {"train": {"epochs": 4}} if scale == "small" else {}
    return replace(setting, key=f"{setting.key}-short", given=merged(setting.given, epochs), methods={})


def images(scale: Scale) -> list[Setting]:
    """Return the settings of Tables I, IV and VII."""
    if scale == "small":
        return [
            Setting(f"{key}-resnet20", f"ResNet-20, {name}", merged(SMALL_IMAGES, given),
                    "ResNet-50, CIFAR-10" if key == "cifar10-jpeg" else "", methods=SMALL_METHODS)
            for key, (name, given) in SMALL_DATA.items()
        ]  # fmt: skip
    return _papers(50) + _papers(101)


def _papers(depth: int) -> list[Setting]:
    network = {"model": {"name": f"resnet{depth}"}}
    made = []
    for key, name, given in (
        ("cifar10", "CIFAR-10", merged(CIFAR, {"data": {"name": "cifar10"}}, network)),
        ("cifar100", "CIFAR-100", merged(CIFAR, {"data": {"name": "cifar100"}}, network)),
        ("imagenet", "ImageNet", merged(IMAGENET, network)),
    ):
        row = f"ResNet-{depth}, {name}"
        critic = "paper-imagenet" if key == "imagenet" else "paper"
        places = PLACES.get(depth, ())
        made.append(Setting(f"{key}-resnet{depth}", row, given, row, row, row, critic, places, TRACKED))
    return made


def large(scale: Scale) -> list[Setting]:
    """Return the settings of Table II."""
    if scale == "paper":
        return _papers(182)
    key, (name, given) = next(iter(SMALL_DATA.items()))
    network = {"model": {"name": "resnet56"}}
    setting = Setting(f"{key}-resnet56", f"ResNet-56, {name}", merged(SMALL_IMAGES, given, network),
                      "ResNet-182, CIFAR-10", methods=SMALL_METHODS)  # fmt: skip
    return [setting]


def sized(scale: Scale) -> list[Setting]:
    """Return the settings of Table VIII: counted, never trained, so the paper's networks at either scale."""
    small = [] if scale == "paper" else images("small")
    return [*small, *(setting for setting in images("paper"))]


def memory(scale: Scale) -> list[Setting]:
    """Return the convolutional settings of Table VI."""
    return [s for s in images(scale) if s.of_memory.endswith("ImageNet")] if scale == "paper" else images("small")[:1]


def perceptrons(scale: Scale) -> list[Setting]:
    """Return the settings of Table III; the small scale has its size, on data sets at hand."""
    sets = [("mnist", "MNIST"), ("fashion-mnist", "Fashion-MNIST") if scale == "small" else ("cifar10", "CIFAR-10")]
    return [
        Setting(f"{key}-mlp", f"MLP, {name}", merged(PERCEPTRON, {"data": {"name": key}}), f"MLP, {name}",
                methods=PERCEPTRON_METHODS)
        for key, name in sets
    ]  # fmt: skip


def texts(scale: Scale) -> dict[str, dict[int, Setting]]:
    """Return the settings of Tables V and IX: for each corpus by the number of layers."""
    corpora = {"PTB": PTB, "enwik8": ENWIK8} if scale == "paper" else {"King James Bible": SMALL_TEXT}
    units = UNITS if scale == "paper" else SMALL_UNITS
    return {
        name: {layers: _lstm(name, given, layers, units[layers]) for layers in units} for name, given in corpora.items()
    }


def _lstm(corpus: str, given: Given, layers: int, units: int) -> Setting:
    key = {"PTB": "ptb", "enwik8": "enwik8"}.get(corpus, "kjv")
    network = {"model": {"name": "lstm", "layers": layers, "units": units}}
    name = f"LSTM, {layers} layers of {units}, {corpus}"
    of_paper = corpus if key != "kjv" else "PTB"
    return Setting(f"{key}-lstm{layers}", name, merged(given, network), of_paper, "LSTM, PTB",
                   "4-layer LSTM, 50 symbols", methods=TRACKED)  # fmt: skip


def deepest_text(scale: Scale) -> Setting:
    """Return the LSTM of four layers, on the first corpus."""
    return next(iter(texts(scale).values()))[4]


def timed(scale: Scale) -> Given:
    """Return what runs change whose time counts: nothing is measured on the way."""
    return {"train": {"track_descent": 0}} if scale == "paper" else {"train": {"track_descent": 0, "epochs": 4}}


def workers(scale: Scale, groups: int) -> int:
    """Return how many processes train so many groups: one each, or as many as this machine has cores."""
    return groups if scale == "paper" else min(groups, os.cpu_count() or 1)
