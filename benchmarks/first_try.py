"""The first try: 8 networks on 3 data sets, with no key set but data, network and 5 epochs.

Every cell is trained by local critic training and by backprop, both by the defaults, from 3 seeds, and by a sweep over
the rates of each optimizer. Figures are test accuracies; the best of the search is chosen on validation.

    cifar     5,000 of the training images of CIFAR-10 (JPEG), 32x32
    fashion   5,000 of the training images of Fashion-MNIST, padded to 32x32
    emoji     1,792 emoji of 64x64 in 9 classes, the largest of 31%; from `npm pack emoji-datasource-google@16.0.0`

    python benchmarks/first_try.py --data-root .data --emoji emoji-datasource-google-16.0.0.tgz --jobs 2

It goes on where it was interrupted. On two cores it takes a day, on a GPU with 16 processes ten minutes.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import multiprocessing
import os
import random
import shutil
import statistics
import tarfile
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from measuring import RESULTS

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one thread for each process

NETWORKS: dict[str, dict[str, Any]] = {
    "efficientnet_b0": {"name": "torchvision:efficientnet_b0"},
    "regnet_y_400mf": {"name": "torchvision:regnet_y_400mf"},
    "mobilenetv4_small": {"name": "timm:mobilenetv4_conv_small"},
    "convnext_tiny": {"name": "torchvision:convnext_tiny"},
    "mobilenet_v3_small": {"name": "torchvision:mobilenet_v3_small"},
    "vit_tiny": {"name": "timm:vit_tiny_patch16_224", "patch_size": 4},
    "resnet10t": {"name": "timm:resnet10t"},
    "resnet18": {"name": "torchvision:resnet18"},
}
METHODS = ("lct", "bp")
DATA = ("emoji", "cifar", "fashion")
PATCH = {"emoji": 8}  # 64 patches, as of the smaller images
RATES = {"sgd": (0.025, 0.4), "adamw": (2.5e-4, 4e-3)}  # lowest and highest, of minibatches of 128
TRIALS = 5  # of every sweep
EPOCHS, SEEDS = 5, (0, 1, 2)
HEAD = """\
Test accuracy in % by the defaults, 5 epochs, mean over seeds (+- standard deviation where there are several); exits at
their share of the main network's multiply-adds. Backprop is by the same defaults. The best of a search over rates and
optimizers is chosen by the main network's validation accuracy, one seed; with it, its optimizer and rate.
`python benchmarks/first_try.py` makes the table.
"""
PART = {"train": 500, "test": 200}  # images of each class


def prepare_cifar(source: Path, folder: Path) -> None:
    for part, count in PART.items():
        for images in sorted((source / part).iterdir()):
            (folder / part / images.name).mkdir(parents=True)
            for image in sorted(images.iterdir())[:count]:
                shutil.copy(image, folder / part / images.name)


def prepare_fashion(source: Path, folder: Path) -> None:
    from PIL import Image, ImageOps

    from anytime_lct.data import datasets
    from anytime_lct.recipes.recipe import DataRecipe

    data: Any = datasets.load(DataRecipe(name="fashion-mnist", root=str(source), validation=0.0))
    for part, count in PART.items():
        images = data.parts[part][0]
        for label, name in enumerate(data.facts.classes):
            target = folder / part / name.replace("/", "-")
            target.mkdir(parents=True)
            for index in (images.labels == label).nonzero().flatten()[:count].tolist():
                ImageOps.expand(Image.fromarray(images.pixels[index, 0].numpy()), 2).save(target / f"{index:05}.png")


def prepare_emoji(source: Path, folder: Path) -> None:
    """Unpack the emoji of nine classes, of people with one more colour of skin; a fifth of them is the test part."""
    draws = random.Random(0)
    with tarfile.open(source) as archive:
        members = {member.name: member for member in archive}
        table = archive.extractfile(members["package/emoji.json"])
        assert table is not None
        for entry in sorted(json.load(table), key=lambda entry: entry["unified"]):
            part = "test" if draws.random() < 0.2 else "train"
            if entry["category"] == "Component":
                continue
            target = folder / part / entry["category"].replace(" & ", "-")
            target.mkdir(parents=True, exist_ok=True)
            skins = list(entry.get("skin_variations", {}).values())[:1]
            for name in (entry["image"], *(skin["image"] for skin in skins)):
                image = archive.extractfile(members[f"package/img/google/64/{name}"])
                assert image is not None
                (target / name).write_bytes(image.read())


def prepare(folder: Path, root: Path, emoji: Path) -> None:
    """Make the class folders that are missing."""
    sources = {"cifar": root / "cifar10-jpeg", "fashion": root, "emoji": emoji}
    makers = {"cifar": prepare_cifar, "fashion": prepare_fashion, "emoji": prepare_emoji}
    for name in DATA:
        if not (folder / name).exists():
            with tempfile.TemporaryDirectory(dir=folder) as temporary:
                makers[name](sources[name], Path(temporary) / name)
                (Path(temporary) / name).rename(folder / name)


def jobs() -> dict[str, list[dict[str, Any]]]:
    """Return all jobs: the sweeps of the search, and the runs by the defaults, seed by seed."""
    cells = [{"data": data, "network": network} for data in DATA for network in NETWORKS]
    search = [{**cell, "method": "lct", "seed": 0, "optimizer": optimizer} for optimizer in RATES for cell in cells]
    defaults = [{**cell, "method": method, "seed": seed} for seed in SEEDS for method in METHODS for cell in cells]
    return {"search": search, "defaults": defaults}


def tables(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the keys of a recipe: data, network, epochs, and for the search an optimizer."""
    model = dict(NETWORKS[job["network"]])
    if "patch_size" in model:
        model["patch_size"] = PATCH.get(job["data"], model["patch_size"])
    keys: dict[str, Any] = {
        "data": {"name": "imagefolder", "root": str(folder / job["data"])},
        "model": model,
        "train": {"epochs": EPOCHS, "method": job["method"], "seed": job["seed"]},
    }
    if "optimizer" in job:
        keys["groups"] = {"name": job["optimizer"]}
    return keys


def run(job: dict[str, Any], folder: Path, scratch: Path) -> list[dict[str, Any]]:
    """Train and evaluate; return the recipe's choices, costs, accuracies and seconds, of a sweep those of every run."""
    import torch

    from anytime_lct import verbs
    from anytime_lct.data import datasets
    from anytime_lct.recipes.reading import complete

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    recipe = complete(tables(job, folder))
    if "optimizer" not in job:
        start = time.monotonic()
        verbs.train(recipe, scratch)
        return [measured(job, scratch, start)]
    share = datasets.from_recipe(recipe).num_rows("train", 0) / 128
    share = share if job["optimizer"] == "sgd" else math.sqrt(share)
    low, high = (share * rate for rate in RATES[job["optimizer"]])
    start = time.monotonic()
    sweep = verbs.sweep(recipe, [f"groups.lr=log:{low}..{high}"], scratch, trials=TRIALS)
    return [
        measured({**job, "rate": trial.settings["groups.lr"]}, trial.run, start)
        for trial in sweep.trials
        if trial.value is not None
    ]


def measured(job: dict[str, Any], path: Path, start: float) -> dict[str, Any]:
    """Evaluate a run that started at `start`, by itself or with its sweep."""
    import torch

    from anytime_lct.counting import component_costs
    from anytime_lct.evaluation import evaluate
    from anytime_lct.run_folder import folder as run_folder
    from anytime_lct.run_folder import journal
    from anytime_lct.run_folder.build import example_input
    from anytime_lct.training.events import Epoch

    last = Epoch.from_json(journal.read(path / run_folder.METRICS)[-1])
    opened = run_folder.open_run(path)
    network, data = opened.network, opened.load_data()
    groups, critics = component_costs(list(network.groups), list(network.critics), example_input(opened.facts, 1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    test = evaluate(network.to(device), data.batches("test"), "classification").mean_scores()
    labels = torch.cat([y for _, y in data.batches("test")])
    costs = [sum(group.flops for group in groups[: i + 1]) for i in range(len(groups))]
    costs = [cost + (critics[i].flops if i < len(critics) else 0) for i, cost in enumerate(costs)]
    return {
        **job,
        "chosen": {"optimizer": opened.recipe.groups.name, "lr": opened.recipe.groups.lr,
                   "batch_size": opened.recipe.data.batch_size, "clip_norm": opened.recipe.train.clip_norm},
        "shares": [round(cost / costs[-1], 4) for cost in costs],
        "multiply_adds": costs[-1],
        "largest_class": labels.bincount().max().item() / len(labels),
        "validation": list(last.scores),
        "test": test,
        "train_seconds": round(last.seconds, 2),
        "seconds": round(time.monotonic() - start, 2),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "torch": torch.__version__,
    }  # fmt: skip


def work(queue: Any, folder: Path, out: Path, end: float) -> None:
    while (job := queue.get()) is not None and time.time() < end:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as scratch:
            try:
                lines = run(job, folder, Path(scratch) / "run")
            except Exception as error:
                trace = traceback.format_exc()[-800:]
                lines = [{**job, "error": f"{type(error).__name__}: {error}", "trace": trace}]
        with out.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def key(job: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(job.get(part) for part in ("data", "network", "method", "seed", "optimizer"))


def read(out: Path) -> list[dict[str, Any]]:
    lines = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    return [line for line in map(json.loads, lines) if "error" not in line]


def spread(values: list[float]) -> str:
    mean = f"{100 * statistics.mean(values):.1f}"
    return f"{mean} +- {100 * statistics.stdev(values):.1f}" if len(values) > 1 else mean


def report(lines: list[dict[str, Any]]) -> str:
    """Return the table, in Markdown: exits as accuracy at their share of the cost, means over seeds."""
    text = io.StringIO()
    text.write("| data | network | optimizer | exit 1 | exit 2 | exit 3 | main | backprop | best of search |\n")
    text.write("|---|---|---|---|---|---|---|---|---|\n")
    for data in DATA:
        for network in NETWORKS:
            cell = [line for line in lines if (line["data"], line["network"]) == (data, network)]
            lct = [line for line in cell if line["method"] == "lct" and "optimizer" not in line]
            bp = [line for line in cell if line["method"] == "bp"]
            search = [line for line in cell if line["method"] == "lct" and line["seed"] == SEEDS[0]]
            if not lct or not bp:
                continue
            best = max(search, key=lambda line: line["validation"][-1])
            exits = [
                f"{100 * statistics.mean(line['test'][i] for line in lct):.1f} at {100 * lct[0]['shares'][i]:.0f}%"
                for i in range(len(lct[0]["shares"]) - 1)
            ]
            chosen = best["chosen"]
            row = [
                data, network, f"{lct[0]['chosen']['optimizer']} {lct[0]['chosen']['lr']:g}", *exits,
                spread([line["test"][-1] for line in lct]), spread([line["test"][-1] for line in bp]),
                f"{100 * best['test'][-1]:.1f} ({chosen['optimizer']} {chosen['lr']:.2g})",
            ]  # fmt: skip
            text.write(f"| {' | '.join(row)} |\n")
    return text.getvalue()


def publish(lines: list[dict[str, Any]]) -> None:
    """Write first_try.json, one run a line, and first_try.md."""
    devices = sorted({f"{line['device']}, torch {line['torch']}" for line in lines})
    runs_in_all = sum(TRIALS if "optimizer" in job else 1 for part in jobs().values() for job in part)
    note = f"{len(lines)} of {runs_in_all} runs, on {'; '.join(devices)}."
    runs = ",\n".join(map(json.dumps, lines))
    (RESULTS / "first_try.json").write_text(f'{{"note": {json.dumps(note)}, "runs": [\n{runs}\n]}}\n', encoding="utf-8")
    (RESULTS / "first_try.md").write_text(f"# The first try\n\n{HEAD}\n{note}\n\n{report(lines)}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(".data"), help="has cifar10-jpeg/ and Fashion-MNIST")
    parser.add_argument("--emoji", type=Path, default=Path("emoji-datasource-google-16.0.0.tgz"))
    parser.add_argument("--folder", type=Path, default=Path("runs/first-try"), help="of the images and the results")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=math.inf, help="no run starts later than this")
    parser.add_argument("--only", choices=("search", "defaults"), help="the runs of the search, or by the defaults")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    prepare(options.folder, options.data_root, options.emoji)
    out = options.folder / "first_try.jsonl"
    done = {key(line) for line in read(out)}
    multiprocessing.set_start_method("spawn")
    queue: Any = multiprocessing.Queue()
    runs = [job for part, part_jobs in jobs().items() if options.only in (None, part) for job in part_jobs]
    remaining = [job for job in runs if key(job) not in done]
    for job in [*remaining, *[None] * options.jobs]:
        queue.put(job)
    end = time.time() + options.seconds
    workers = [
        multiprocessing.Process(target=work, args=(queue, options.folder, out, end)) for _ in range(options.jobs)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    queue.cancel_join_thread()
    lines = read(out)
    publish(lines)
    print(report(lines))


if __name__ == "__main__":
    main()
