"""All that a GPU settles, in one command: tests, waits, workers, memory, data, answers, steps, accuracy.

    python benchmarks/gpu.py [--minutes 8] [--out gpu.json] [--data FOLDER]
    python benchmarks/gpu.py --device cpu --minutes 2                # a dry run of every section, on small minibatches

It needs one GPU of CUDA, and 16 cores for the images. To carry to a machine that reaches no index: this checkout; what
`pip install '.[test]'` brings beside torch and torchvision, as wheels (fvcore, iopath, onnx, onnx-ir, onnxscript,
onnxruntime, pydantic, typer, rich, matplotlib, safetensors, scikit-learn, tomli-w, pytest, filelock: less than 64 MB);
and the folder cifar10-jpeg. There, `pip install --no-deps --no-build-isolation .` is enough; answers by the GPU need
onnxruntime-gpu.

Each section runs in a process of its own and has its share of the minutes; the last one has all that are left. --out is
written after every section, so that a run cut short keeps what it has. A section that lacks something, fails or takes
too long says so in a sentence, and the next one begins.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_steps
import torch
from measuring import SavedBytes
from PIL import Image
from providers import compare
from runtime import bundle_of

from anytime_lct.data import datasets
from anytime_lct.network import LCTNetwork
from anytime_lct.recipes import reading
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder.build import build_network
from anytime_lct.runtime.providers import PROVIDERS
from anytime_lct.training.loop import Loop
from anytime_lct.training.methods.table import METHODS
from anytime_lct.training.minibatch import Minibatch
from anytime_lct.training.processes.team import Team
from anytime_lct.training.schedule import Clock
from anytime_lct.verbs import analyze, train

HERE = Path(__file__).parent
IN_STEPS = ("ResNet-20", "ResNet-50, 32x32", "ResNet-50", "LSTM")
GOAL = 90.0  # percent on the test images, by the main network
PHOTOS, SIDE = 256, 256  # JPEG files of the data path alone


class SkipError(Exception):
    """A section lacks something; the text says what."""


@dataclass(frozen=True)
class Job:
    """What a section is run with; `batch` replaces all sizes of minibatches in a dry run."""

    device: torch.device
    data: Path
    seconds: float
    scratch: Path

    @property
    def dry(self) -> bool:
        return self.device.type == "cpu"

    @property
    def batch(self) -> int:
        return 2 if self.dry else 0

    @property
    def place(self) -> str:
        return f"{self.device.type}:0"


Figures = Iterator[dict[str, Any]]


def tests(job: Job) -> Figures:
    """The tests that are marked gpu."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-o", "addopts=", "-p", "no:cacheprovider"]
    files = [HERE.parent / "tests" / f"test_{name}.py" for name in ("gpu_steps", "workers")]
    run = subprocess.run([*command, *map(str, files)], capture_output=True, text=True, check=False)
    yield {"exit_code": run.returncode, "summary": run.stdout.strip().splitlines()[-1:], "output": run.stdout[-4000:]}


def waits(job: Job) -> Figures:
    """How often a hundred steps of ResNet-20 by local critic training wait for the device, as they are and recorded."""
    if job.dry:
        raise SkipError("only a GPU is waited for")
    bench = gpu_steps.BENCHES["ResNet-20"]
    data = gpu_steps.minibatches(bench, bench.rows)
    recipe = gpu_steps.recipe_for(bench, "lct")
    for recorded in (False, True):
        network = build_network(recipe, data.facts, whole=False, compare=False).to(job.device).train()
        clock, team = Clock(1000, 8, bench.rows), Team(job.device)
        method = METHODS["lct"].make(network, recipe, "classification", clock, team)
        loop = Loop(method, data, recipe.train, clock, team, len(method.exits))
        step, batches = loop._step if recorded else method.step, loop._minibatches()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for number in range(120):
                torch.cuda.set_sync_debug_mode("warn" if number >= 20 else "default")
                step(next(batches))
        torch.cuda.set_sync_debug_mode("default")
        yield {"recorded": recorded, "steps": 100, "waits": sum("synchroniz" in str(one.message) for one in caught)}


def workers(job: Job) -> Figures:
    """Two workers that share the device, against one: the largest difference of a weight after an epoch."""
    recipe = reading.complete(
        {
            "data": {"name": "digits", "batch_size": 256},
            "model": {"name": "resnet", "depth": 8, "width": 8},
            "cut": {"groups": 2},
            "train": {"epochs": 1, "device": job.place, "precision": "float32"},
        }
    )
    weights = {}
    for count in (1, 2):
        train(recipe, job.scratch / str(count), workers=count)
        main_weights, critic_weights = run_folder.read_weights(job.scratch / str(count))
        weights[count] = {**main_weights, **critic_weights}
    differences = [(weights[1][name] - value).abs().max().item() for name, value in weights[2].items()]
    yield {"tensors": len(differences), "largest_difference": max(differences)}


def memory(job: Job) -> Figures:
    """The peak memory of a step of ResNet-50 at 224x224: by backprop, and cut in 4 by memory."""
    name = "ResNet-20" if job.dry else "ResNet-50"
    bench = gpu_steps.BENCHES[name]
    data = gpu_steps.minibatches(bench, job.batch or bench.rows)
    for method in ("bp", "lct"):
        recipe = gpu_steps.recipe_for(bench, method)
        recipe = recipe.model_copy(update={"cut": recipe.cut.model_copy(update={"by": "memory"})})
        network = build_network(recipe, data.facts, whole=method == "bp", compare=False).to(job.device).train()
        weights = torch.cuda.memory_allocated() if not job.dry else 0
        yield {"method": method, "network": name, "batch": job.batch or bench.rows, "weight_bytes": weights,
               "peak_bytes": peak(network, recipe, data, job)}  # fmt: skip


def peak(network: LCTNetwork, recipe: Any, data: Any, job: Job) -> int:
    """Return the most bytes in use in three steps: of the device's memory, or on a CPU what is saved for backward."""
    made = METHODS[recipe.train.method].make(network, recipe, "classification", Clock(100, 8), Team(job.device))
    batches = gpu_steps.endless(data.to(job.device))
    with SavedBytes(network) if job.dry else contextlib.nullcontext() as saved:
        if not job.dry:
            torch.cuda.reset_peak_memory_stats()
        for number in range(3):
            made.step(Minibatch(*next(batches), number))
        return saved.peak if saved is not None else torch.cuda.max_memory_allocated()


def data(job: Job) -> Figures:
    """Images a second of the data path alone: small ones on the device, and JPEG files by reader processes."""
    bench = gpu_steps.BENCHES["ResNet-20"]
    batches = gpu_steps.endless(gpu_steps.minibatches(bench, bench.rows).to(job.device))
    yield {"images": "32x32 on the device", "images_per_second": rate(batches, 20 if job.dry else 500, job)}
    classes = [job.scratch / "photos" / "train" / name for name in ("a", "b")]
    noise = torch.randint(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=torch.uint8).numpy()
    for folder in classes:
        folder.mkdir(parents=True)
        for number in range(PHOTOS // 2):
            Image.fromarray(noise).resize((SIDE, SIDE)).save(folder / f"{number}.jpg")
    for readers in (0, 2) if job.dry else (0, 8, 16):
        tables = {"name": "imagefolder", "root": str(job.scratch / "photos"), "image_size": 224, "batch_size": 32,
                  "augment": "imagenet", "workers": readers}  # fmt: skip
        dataset = datasets.from_recipe(reading.complete({"data": tables})).to(job.device)
        yield {
            "images": f"JPEG, {readers} readers",
            "images_per_second": rate(gpu_steps.endless(dataset), 1 if job.dry else 7, job),
        }


def rate(batches: Iterator[Any], count: int, job: Job) -> float:
    next(batches)  # starts readers
    gpu_steps.finish(job.device)
    start = time.perf_counter()
    images = sum(len(next(batches)[1]) for _ in range(count))
    gpu_steps.finish(job.device)
    return images / (time.perf_counter() - start)


def steps(job: Job) -> Figures:
    """Milliseconds of a step, as one thing after another is added that makes it fast (gpu_steps.py)."""
    ways = [way for way in gpu_steps.WAYS[:-1] if not job.dry or way.name in ("no waits", "lanes")]
    names = IN_STEPS if not job.dry else ("ResNet-20", "LSTM")
    yield from gpu_steps.rows(job.device, names, gpu_steps.METHOD_NAMES, ways, 1 if job.dry else 30, job.batch)


def compiled(job: Job) -> Figures:
    """The same with torch.compile, which takes its time before the first step."""
    if job.dry:
        raise SkipError("compiled for a CPU, it says nothing about a GPU")
    names = ("ResNet-50", "ResNet-20")
    yield from gpu_steps.rows(job.device, names, ("bp", "lct"), gpu_steps.WAYS[-1:], 30)


def accuracy(job: Job) -> Figures:
    """ResNet-20 on CIFAR-10 (JPEG) by local critic training, for as many epochs as there is time."""
    folder = job.data / "cifar10-jpeg"
    tables: dict[str, Any] = {"data": {"name": "imagefolder", "root": str(folder)}, "model": {"name": "resnet20"}}
    if job.dry:
        tables = {"data": {"name": "digits"}, "model": {"name": "resnet", "depth": 8, "width": 4}}
    elif not folder.is_dir():
        raise SkipError(f"'{folder}' is missing: --data names the folder that has cifar10-jpeg")
    tables["train"] = {"epochs": 1, "device": job.place}
    start = time.perf_counter()
    train(reading.complete(tables), job.scratch / "first")
    epoch = time.perf_counter() - start  # starting included
    epochs = 2 if job.dry else max(1, int((job.seconds - 2 * epoch) / epoch))
    recipe = reading.complete({**tables, "train": {**tables["train"], "epochs": epochs}})
    start = time.perf_counter()
    train(recipe, job.scratch / "run")
    seconds = time.perf_counter() - start
    yield {"epochs": epochs, "seconds": seconds}
    profile = analyze(job.scratch / "run")
    percent = [round(100 * exit_.test.value, 2) for exit_ in profile.exits]
    flops = [profile.cost(exit_.index).flops for exit_ in profile.exits]
    yield {"test_percent": percent, "flops": flops, "reached": percent[-1] >= GOAL}


Section = Callable[[Job], Figures]


def providers(job: Job) -> Figures:
    """Every exit answered by onnxruntime on the GPU, beside the CPU: one image, and 64 at once."""
    names = ["cpu", "openvino"] if job.dry else ["cpu", "cuda", "tensorrt"]
    names = [name for name in names if PROVIDERS[name].is_there]
    if not job.dry and len(names) == 1:
        raise SkipError("onnxruntime has no provider for a GPU; install onnxruntime-gpu instead of onnxruntime")
    networks = {"resnet20": 32} if job.dry else {"resnet20": 32, "resnet50": 224}
    for network, side in networks.items():
        bundle = bundle_of(network, side, job.scratch / network)
        for batch in (1, 2 if job.dry else 64):
            for row in compare(bundle, 2 if job.dry else 30, names, batch):
                yield {"network": network, "side": side, "batch": batch, **row}


SECTIONS: dict[str, tuple[Section, float]] = {  # with the share of the minutes that it may take
    "tests": (tests, 0.25),
    "waits": (waits, 0.1),
    "workers": (workers, 0.3),
    "memory": (memory, 0.15),
    "data": (data, 0.15),
    "providers": (providers, 0.15),
    "steps": (steps, 0.3),
    "accuracy": (accuracy, 0.4),
    "compiled": (compiled, 1.0),
}


def run_section(name: str, job: Job, out: Path) -> None:
    """Write the figures of a section into `out`, as JSON lines, each as soon as it is measured."""
    os.setsid()  # so that the processes which it starts end with it
    with out.open("w", encoding="utf-8") as file:
        try:
            for figures in SECTIONS[name][0](job):
                file.write(json.dumps(figures) + "\n")
                file.flush()
        except SkipError as error:
            file.write(json.dumps({"skipped": str(error)}) + "\n")
        except Exception as error:
            traceback.print_exc()
            file.write(json.dumps({"failed": f"{type(error).__name__}: {error}"}) + "\n")


def collected(out: Path, problem: str | None) -> dict[str, Any]:
    """Return what a section has measured, and why it has not measured all."""
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    reasons = {key: line[key] for line in lines for key in ("skipped", "failed") if key in line}
    figures = [line for line in lines if not reasons.keys() & line.keys()]
    return {"figures": figures} | ({"failed": problem} if problem else reasons)


def run_all(options: argparse.Namespace) -> dict[str, Any]:
    """Run the sections one after another, and write all results after each."""
    start, total = time.monotonic(), 60 * options.minutes
    card = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    result: dict[str, Any] = {"device": card, "torch": torch.__version__, "minutes": options.minutes, "sections": {}}
    processes = multiprocessing.get_context("forkserver")  # forks a process that has imported all this
    processes.set_forkserver_preload(["torchvision", "anytime_lct.verbs"])
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.sections:
            left = total - (time.monotonic() - start)
            limit, out = max(1.0, min(SECTIONS[name][1] * total, left)), Path(scratch) / f"{name}.jsonl"
            job = Job(torch.device(options.device), options.data.absolute(), limit - 5, Path(scratch) / name)
            job.scratch.mkdir()
            problem, before = None, time.monotonic()
            process = processes.Process(target=run_section, args=(name, job, out))
            process.start()
            process.join(limit)
            if process.is_alive():
                problem = f"it took longer than its {limit:.0f} s"
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid or 0, signal.SIGKILL)
                process.join()
            elif process.exitcode:
                problem = f"its process ended with exit code {process.exitcode}"
            section = collected(out, problem) | {"seconds": round(time.monotonic() - before, 1)}
            result["sections"][name] = section
            state = next((f"{key}: {section[key]}" for key in ("failed", "skipped") if key in section), "done")
            print(f"{name}: {state} ({section['seconds']} s)", flush=True)
            for figures in section["figures"]:
                print("   ", {key: value for key, value in figures.items() if key != "output"}, flush=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu.json")
    parser.add_argument("--data", type=Path, default=Path(".data"), help="folder that has cifar10-jpeg")
    parser.add_argument("--sections", nargs="+", default=[*SECTIONS], choices=[*SECTIONS])
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU of CUDA; --device cpu is a dry run")
    sections = run_all(options)["sections"]
    failed = [name for name, section in sections.items() if "failed" in section]
    print(
        f"{len(sections) - len(failed)} sections done or skipped; failed: {', '.join(failed) or 'none'}; {options.out}"
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
