"""The shipped Fashion-MNIST recipe, from nothing to the profile of its four exits: accuracy on the test set and time.

Trains by the recipe, analyzes, and writes the profile with recipe, seed, seconds and machine, and the picture.
The validation split chooses; the test set is looked at once.

    python benchmarks/fashion_mnist.py [--data-root DIR] [--seed 0] [--run-dir runs/fashion-mnist]
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from measuring import RESULTS, write

from anytime_lct.cli.analyze import measure
from anytime_lct.cli.train import run
from anytime_lct.recipes import reading as recipes
from anytime_lct.run_folder import folder as run_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", type=Path, default=Path("runs/fashion-mnist"))
    told = parser.parse_args()
    overrides: dict[str, object] = {"train.seed": told.seed}
    if told.data_root:
        overrides["data.root"] = told.data_root
    recipe = recipes.read("fashion-mnist", overrides)
    run(recipe, told.run_dir)
    profile = measure(told.run_dir)
    epochs = [json.loads(line) for line in (told.run_dir / run_folder.METRICS).read_text(encoding="utf-8").splitlines()]
    result = {
        "command": f"python benchmarks/fashion_mnist.py --seed {told.seed}",
        "seed": told.seed,
        "training_seconds": round(sum(epoch["seconds"] for epoch in epochs), 1),
        "recipe": {**recipe.model_dump(mode="json"), "data": {**recipe.data.model_dump(mode="json"), "root": None}},
        "profile": profile.model_dump(mode="json"),
        "epochs": epochs,
    }
    print(f"wrote {write('fashion_mnist', result)}")
    shutil.copyfile(told.run_dir / run_folder.PICTURE, RESULTS / "fashion_mnist.png")


if __name__ == "__main__":
    main()
