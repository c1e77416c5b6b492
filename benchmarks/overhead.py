"""The cost of local critic training against backprop: time of a step and saved activations.

1. Time of a step in one process with 4 layer groups and slim critics, against backprop on the same network, in
   alternation, medians of ratios.
2. Peak bytes of activations saved for backward in a step, cut in 4 by memory and by layers, against backprop's.

    python benchmarks/overhead.py [--rounds 15] [--threads 2]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from measuring import SavedBytes, ratios, write
from torch import nn

from anytime_lct.models import networks as models
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading as recipes
from anytime_lct.recipes.recipe import Recipe
from anytime_lct.run_folder.build import build_network
from anytime_lct.task import Facts
from anytime_lct.training.methods.worker import Worker
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.team import Team
from anytime_lct.training.schedule import Clock

FACTS = Facts("random", "classification", (3, 32, 32), 10, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)


def recipe_for(model: dict[str, Any], **cut: Any) -> Recipe:
    return recipes.complete(
        {
            "data": {"name": "cifar10"},
            "model": model,
            "cut": {"groups": 4, "by": "layers", **cut},
            "critic": {"kind": "slim"},
            "rule": {"critic_loss": "paper"},
            "groups": {"name": "sgd", "lr": 0.1, "weight_decay": 5e-4},
            "critics": {"name": "adam", "lr": 1e-4, "weight_decay": 0.0},
            "train": {"clip_norm": 0.0},
        }
    )


class Backprop:
    """One step of backprop on the uncut network with the same optimizer."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(0)
        self.model = models.build(recipe.model.name, FACTS.input_shape, FACTS.outputs, **recipe.model.options).train()
        sgd = recipe.groups
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), sgd.lr, sgd.momentum, nesterov=True, weight_decay=sgd.weight_decay, fused=True
        )

    def step(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()


def lct_worker(recipe: Recipe) -> tuple[LCTNetwork, Worker]:
    network = build_network(recipe, FACTS).train()
    return network, Worker.of(network, recipe, "classification", Clock(10_000, 100), Team(torch.device("cpu")))


def training_time(name: str, model: dict[str, Any], batch: int, rounds: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    x, y = torch.randn(batch, *FACTS.input_shape), torch.randint(0, 10, (batch,))
    forms = {}
    for form in ("per-sample", "scalar"):
        recipe = recipe_for(model)
        recipe = recipe.model_copy(update={"rule": recipe.rule.model_copy(update={"form": form})})
        forms[form] = lct_worker(recipe)[1]
    backprop = Backprop(recipe_for(model))
    times = ratios(
        [lambda: backprop.step(x, y), *(lambda w=worker: w.step(Minibatch(x, y, 0)) for worker in forms.values())],
        rounds,
    )
    rows = []
    for form, row in zip(forms, times[1:], strict=True):
        rows.append(
            {"network": name, "batch": batch, "form": form, "backprop_seconds": times[0]["median_seconds"], **row}
        )
        print(f"training {name:16s} {form:11s} {row['median_ratio']:.3f} times backprop", flush=True)
    return rows


def saved_bytes(name: str, model: dict[str, Any], batch: int) -> dict[str, Any]:
    x, y = torch.randn(batch, *FACTS.input_shape), torch.randint(0, 10, (batch,))
    backprop = Backprop(recipe_for(model))
    with SavedBytes(backprop.model) as whole:
        backprop.step(x, y)
    row: dict[str, Any] = {"network": name, "batch": batch, "backprop_peak_bytes": whole.peak}
    for by in ("memory", "layers"):
        network, worker = lct_worker(recipe_for(model, by=by))
        with SavedBytes(network) as cut:
            worker.step(Minibatch(x, y, 0))
        row[by] = {"places": network.places, "peak_bytes": cut.peak, "share": cut.peak / whole.peak}
        print(
            f"saved bytes {name} by {by}: {cut.peak / whole.peak:.3f} of backprop's, after {', '.join(network.places)}",
            flush=True,
        )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    large, small = {"name": "resnet50"}, {"name": "resnet20"}
    result = {
        "training_time": [
            *training_time("resnet50", large, 32, arguments.rounds),
            *training_time("resnet20", small, 128, 2 * arguments.rounds),
        ],
        "saved_bytes": [saved_bytes("resnet50", large, 16), saved_bytes("resnet20", small, 128)],
    }
    print(f"wrote {write('overhead', result)}")


if __name__ == "__main__":
    main()
