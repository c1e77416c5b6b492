"""The shipped Fashion-MNIST recipe, trained from scratch: test accuracy of its four exits, and time.

Trains by the recipe, analyzes, and writes the profile with recipe, seed, seconds and machine, and the picture.
All choices use the validation split; the test set is evaluated once.

    python benchmarks/fashion_mnist.py [--data-root DIR] [--seed 0] [--run-dir runs/fashion-mnist]
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from measuring import RESULTS, write

from anytime_lct.recipes import reading as recipes
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal
from anytime_lct.training.events import Epoch, Event
from anytime_lct.training.memory import keep_freed_memory
from anytime_lct.verbs import analyze, train


def show(event: Event) -> None:
    """Print the seconds of an epoch and the validation accuracy of every exit."""
    if isinstance(event, Epoch):
        scores = " ".join(f"{score:.2%}" for score in event.scores)
        print(f"epoch {event.epoch}  {event.seconds:.1f} s  validation accuracy {scores}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/fashion-mnist"))
    arguments = parser.parse_args()
    overrides: dict[str, object] = {"train.seed": arguments.seed}
    if arguments.data_root:
        overrides["data.root"] = arguments.data_root
    recipe = recipes.read("fashion-mnist", overrides)
    keep_freed_memory()
    train(recipe, arguments.run_dir, report=show)
    profile = analyze(arguments.run_dir)
    epochs = journal.read(arguments.run_dir / run_folder.METRICS)
    result = {
        "command": f"python benchmarks/fashion_mnist.py --seed {arguments.seed}",
        "seed": arguments.seed,
        "training_seconds": round(sum(epoch["seconds"] for epoch in epochs), 1),
        "recipe": {**recipe.model_dump(mode="json"), "data": {**recipe.data.model_dump(mode="json"), "root": None}},
        "profile": profile.model_dump(mode="json"),
        "epochs": epochs,
    }
    print(f"wrote {write('fashion_mnist', result)}")
    shutil.copyfile(arguments.run_dir / run_folder.PICTURE, RESULTS / "fashion_mnist.png")


if __name__ == "__main__":
    main()
