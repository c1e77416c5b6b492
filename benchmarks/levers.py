"""What improves the exits of local critic training: many short runs at once on one GPU, CIFAR-10 (JPEG).

Needs torch, torchvision, numpy and PIL, not the toolkit. A run is named `trunk/setting+setting`, such as
`earlywide/own+smooth-0.1`; `--list` shows trunks, settings and the default sweep, most informative first. 45,000
images train, 5,000 validate (choices), 10,000 test (reports). Every finished run is one line of --out; what is there is
not repeated.

    python benchmarks/levers.py --data .data/cifar10-jpeg --cache cifar.npz          # 21 MB, to carry elsewhere
    python benchmarks/levers.py --data cifar.npz --out levers.jsonl --epochs 16 --seeds 2 --limit-seconds 300
    python benchmarks/levers.py --data cifar.npz --out levers.jsonl --only 'earlywide/own*' 'earlywide/joint+ema-0.999'
    python benchmarks/levers.py --out levers.jsonl --table
    python benchmarks/levers.py --data cifar.npz --device cpu --epochs 1 --samples 512 --only 'resnet14/own'  # a try

On a GPU each run is a CUDA graph per minibatch on a stream of its own, `--concurrent` of them side by side, driven from
one thread. `--processes` splits the runs among processes where that thread is the bottleneck.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import statistics
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # streams that share a connection wait for each other

import numpy as np
import torch
from levers_networks import TRUNKS, exit_costs, trunk_costs, whitening, widths
from levers_training import PAD, Data, Options, measure_step, train
from PIL import Image
from torch.nn import functional as F

VALIDATED, SPLIT_SEED, WHITENED = 5000, 0, 2000
QUEUED, FAILURES = 4, 3  # portions on their way to the device; runs that fail before anything is given up
Packed = dict[str, tuple[list[bytes], list[int]]]  # JPEG files and labels of train and test

METHODS: dict[str, dict[str, Any]] = {
    "own": {},
    "joint": {"rule": "joint"},
    "alone-1": {"alone": 1},
    "alone-2": {"alone": 2},
    "alone-3": {"alone": 3},
    "backprop": {"alone": 4},
    "paper": {"rule": "paper"},
    "mixed": {"rule": "mixed"},
    "posthoc": {"stages": (("main", 1.0), ("critics", 1.0)), "fit_rate": 1.0},
    "posthoc-distil": {"stages": (("main", 1.0), ("critics", 1.0)), "fit_rate": 1.0, "fit_weight": 1.0},
}
SHAPES: dict[str, dict[str, Any]] = {
    "blocks-1": {"blocks": 1},
    "blocks-3": {"blocks": 3},
    "blocks-4": {"blocks": 4},
    "ratio-0.5": {"ratio": 0.5},
    "ratio-1": {"ratio": 1.0},
}
LEVERS: dict[str, dict[str, Any]] = {
    "man-0.5": {"man": 0.5},
    "man-1": {"man": 1.0},
    "reach-2": {"reach": (1.0, 1.0)},
    "reach-half": {"reach": (0.5, 0.5)},
    "next-1": {"teacher": "next"},
    "next-0.5-t3": {"teacher": "next", "teacher_weight": 0.5, "temperature": 3.0},
    "next-1-t3": {"teacher": "next", "temperature": 3.0},
    "main-1": {"teacher": "main"},
    "main-1-t3": {"teacher": "main", "temperature": 3.0},
    "stretch": {"stages": (("all", 0.75), ("critics", 0.25)), "fit_weight": 1.0},
    "stretch-plain": {"stages": (("all", 0.75), ("critics", 0.25))},
    "extra": {"stages": (("all", 1.0), ("critics", 0.25)), "fit_weight": 1.0},
    "dfs-0.5": {"dfs": 0.5},
    "concat": {"concat": True},
}
KNOBS: dict[str, dict[str, Any]] = {
    "smooth-0.1": {"smoothing": 0.1},
    "smooth-0.2": {"smoothing": 0.2},
    "ema-0.999": {"ema": 0.999},
    "alternate": {"flips": "alternating"},
    "white": {"whitening": True},
    "decay-1e-3": {"weight_decay": 1e-3},
    "decay-2e-3": {"weight_decay": 2e-3},
    "rate-0.2": {"rate": 0.2},
    "rate-0.4": {"rate": 0.4},
    "batch-128": {"batch": 128},
    "batch-512": {"batch": 512},
    "norm-0.3": {"bn_momentum": 0.3},
    "norm-0.6": {"bn_momentum": 0.6},
    "cutout-12": {"cutout": 12},
    "plain-momentum": {"nesterov": False},
    "rise-0.1": {"rise": 0.1},
    "rise-0.5": {"rise": 0.5},
}
SETTINGS = METHODS | SHAPES | LEVERS | KNOBS
MAIN_TRUNKS = ("resnet14", "earlywide")


def sweep(levers_on: str) -> list[list[str]]:
    """Return the names of the default runs, in groups, the most informative first."""
    others = [trunk for trunk in TRUNKS if trunk not in MAIN_TRUNKS]
    splits = [f"{trunk}/{method}" for method in ("own", "joint") for trunk in others]
    shapes = [f"{trunk}/own+{shape}" for shape in SHAPES for trunk in MAIN_TRUNKS]
    return [
        [f"{trunk}/{method}" for method in METHODS for trunk in MAIN_TRUNKS],
        splits + shapes,
        [f"{levers_on}/own+{lever}" for lever in LEVERS],
        [f"{levers_on}/{method}+{knob}" for knob in KNOBS for method in ("own", "backprop")],
    ]


def options_of(name: str, overrides: dict[str, Any]) -> Options:
    """Return the options of a run's name; `overrides` are beneath its settings."""
    trunk, _, settings = name.partition("/")
    if trunk not in TRUNKS:
        raise SystemExit(f"Expected a trunk ({', '.join(TRUNKS)}) in front of the slash, got '{name}'.")
    options = replace(Options(trunk=trunk), **overrides)
    for setting in settings.split("+"):
        if setting not in SETTINGS:
            raise SystemExit(f"Expected settings ({', '.join(SETTINGS)}) behind the slash, got '{name}'.")
        options = replace(options, **SETTINGS[setting])
    return options


def override(text: str) -> tuple[str, Any]:
    """Read key=value, the value in JSON or as text; lists become tuples."""
    key, _, value = text.partition("=")
    names = [option.name for option in dataclasses.fields(Options)]
    if key not in names:
        raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)} and a value, got '{text}'")
    try:
        read = json.loads(value)
    except ValueError:
        read = value
    return key, _tuples(read)


# Data


def read_files(path: Path) -> Packed:
    """Read the JPEG files of class folders DIR/{train,test}/CLASS, or of a file that `write_cache` wrote."""
    if path.is_file():
        with np.load(path) as file:
            stream, arrays = file["bytes"].tobytes(), dict(file)
        ends = np.cumsum(arrays["sizes"]).tolist()
        files = [stream[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        labels, first_test = arrays["labels"].tolist(), int(arrays["train"])
        return {
            "train": (files[:first_test], labels[:first_test]),
            "test": (files[first_test:], labels[first_test:]),
        }
    splits: Packed = {}
    for split in ("train", "test"):
        paths = sorted((path / split).glob("*/*.jpg"))
        if not paths:
            raise SystemExit(f"Expected JPEG files in {path / split}/CLASS/, found none.")
        classes = sorted({file.parent.name for file in paths})
        splits[split] = ([file.read_bytes() for file in paths], [classes.index(file.parent.name) for file in paths])
    return splits


def write_cache(splits: Packed, path: Path) -> None:
    """Write all JPEG files into one compressed file, whose equal headers then take no space."""
    files = [file for split in splits.values() for file in split[0]]
    np.savez_compressed(
        path,
        bytes=np.frombuffer(b"".join(files), np.uint8),
        sizes=np.array([len(file) for file in files]),
        labels=np.array([label for split in splits.values() for label in split[1]]),
        train=np.array(len(splits["train"][0])),
    )


def decode(files: Sequence[bytes]) -> np.ndarray:
    """Return images as bytes, (N, 32, 32, 3)."""
    return np.stack([np.asarray(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])


def load(path: Path, device: torch.device, samples: int | None) -> Data:
    """Decode all images on all cores and put them on the device; `samples` keeps a part of each split."""
    images, labels = dict[str, torch.Tensor](), dict[str, torch.Tensor]()
    with ProcessPoolExecutor(mp_context=get_context("fork")) as pool:
        for split, (files, targets) in read_files(path).items():
            parts = pool.map(decode, [files[k : k + 1000] for k in range(0, len(files), 1000)])
            images[split], labels[split] = torch.from_numpy(np.concatenate([*parts])), torch.tensor(targets)
    order = torch.randperm(len(labels["train"]), generator=torch.Generator().manual_seed(SPLIT_SEED))
    tested = torch.randperm(len(labels["test"]), generator=torch.Generator().manual_seed(SPLIT_SEED))
    chosen = {"validation": order[:VALIDATED], "train": order[VALIDATED:], "test": tested}
    parts = {}
    for split, which in chosen.items():
        which, source = which[:samples], "test" if split == "test" else "train"
        parts[split] = (images[source][which], labels[source][which].to(device))
    numbers = parts["train"][0].float().flatten(0, 2)
    mean, scale = numbers.mean(0), 1 / numbers.std(0)
    few = ((parts["train"][0][:WHITENED].float() - mean) * scale).permute(0, 3, 1, 2)
    padded = F.pad(parts["train"][0].permute(0, 3, 1, 2), (PAD, PAD, PAD, PAD)).permute(0, 2, 3, 1).contiguous()
    return Data(
        train=(padded.to(device), parts["train"][1]),
        validation=(parts["validation"][0].to(device), parts["validation"][1]),
        test=(parts["test"][0].to(device), parts["test"][1]),
        mean=mean.to(device),
        scale=scale.to(device),
        filters=whitening(few),
    )


# Runs


@dataclass
class Run:
    """A run that is under way: its work, and marks on the device behind each portion of it."""

    name: str
    seed: int
    options: Options
    work: Generator[None, None, dict[str, Any]]
    stream: torch.cuda.Stream | None
    marks: deque[torch.cuda.Event] = field(default_factory=deque)
    start: float = field(default_factory=time.perf_counter)

    def ready(self) -> bool:
        """Whether the device has so little left of this run that more may be handed over."""
        while self.marks and self.marks[0].query():
            self.marks.popleft()
        return len(self.marks) < QUEUED

    def advance(self) -> dict[str, Any] | None:
        """Hand one more portion to the device; return the result at the end."""
        with torch.cuda.stream(self.stream) if self.stream else nullcontext():
            try:
                next(self.work)
            except StopIteration as end:
                return end.value
            if self.stream:
                self.marks.append(torch.cuda.Event())
                self.marks[-1].record()
        return None


def drive(jobs: Sequence[tuple[str, int, Options]], data: Data, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Run jobs side by side; yield the record of each as it ends. A run that fails is reported, the others go on.

    A run that would not end within the limit, by the mean of those that did, is not started; at the limit all stop.
    """
    waiting, active, seconds, failed = deque(jobs), list[Run](), list[float](), 0
    on_gpu = data.mean.is_cuda
    left = lambda: args.limit_seconds - (time.perf_counter() - args.start)  # noqa: E731
    while left() > 0:
        while waiting and len(active) < args.concurrent and left() > (statistics.fmean(seconds) if seconds else 0):
            name, seed, options = waiting.popleft()
            stream = torch.cuda.Stream() if on_gpu else None
            active.append(Run(name, seed, options, train(options, data, seed, on_gpu and not args.eager), stream))
        if not active:
            break
        moved = False
        for run in [run for run in active if run.ready()]:
            moved = True
            try:
                result = run.advance()
            except Exception:
                print(f"{run.name} (seed {run.seed}) failed:", *traceback.format_exc().splitlines()[-12:], sep="\n  ")
                active.remove(run)
                failed += 1
                if failed == FAILURES and not seconds:
                    raise SystemExit(f"The first {FAILURES} runs all failed; on a GPU, try --eager.") from None
                continue
            if result is not None:
                active.remove(run)
                seconds.append(time.perf_counter() - run.start)
                if on_gpu and torch.cuda.memory_reserved() > torch.cuda.mem_get_info()[1] / 2:
                    torch.cuda.empty_cache()  # of the graphs of finished runs
                yield {
                    "name": run.name,
                    "seed": run.seed,
                    "options": asdict(run.options),
                    "seconds": round(seconds[-1], 2),
                    "concurrent": args.concurrent,
                    **result,
                }
        if not moved:
            time.sleep(2e-4)
    if on_gpu:
        torch.cuda.synchronize()
    print(f"{len(seconds)} runs in {time.perf_counter() - args.start:.1f} s")
    for run in active:
        print(f"{run.name} (seed {run.seed}) was stopped at the limit.")
    if waiting:
        print(f"{len(waiting)} runs were not started, the first of them {waiting[0][0]} (seed {waiting[0][1]}).")


def time_steps(planned: Sequence[tuple[str, int, Options]], data: Data) -> None:
    """Print the milliseconds and the memory of a step of each variant, one variant after another."""
    if not data.mean.is_cuda:
        raise SystemExit("Expected a GPU for --time, got --device cpu.")
    with torch.cuda.stream(torch.cuda.Stream()):
        for name, seed, options in planned:
            if seed == 0:
                milliseconds, megabytes = measure_step(options, data)
                print(f"{name}: {milliseconds:.2f} ms a step of {options.batch}, {megabytes:.0f} MB", flush=True)


def plan(args: argparse.Namespace) -> list[tuple[str, int, Options]]:
    """Return the runs that are asked for and not yet in --out: group by group, seed by seed."""
    groups = sweep(args.levers_on)
    if args.only:
        known = [name for group in groups for name in group]
        exact = [pattern for pattern in args.only if not any(sign in pattern for sign in "*?[")]
        listed = [name for name in known if any(fnmatchcase(name, pattern) for pattern in args.only)]
        groups = [list(dict.fromkeys([*listed, *exact]))]
        if not groups[0]:
            raise SystemExit(f"Expected names or patterns of runs, got {' '.join(args.only)}; --list shows them.")
    done = {(json.dumps(record["options"]), record["seed"]) for record in read_records(args.out)}
    overrides = {"epochs": args.epochs} | dict(args.set)
    planned = []
    for group in groups:
        for seed in range(args.seeds):
            for name in group:
                options = options_of(name, overrides)
                if (json.dumps(asdict(options)), seed) not in done:
                    planned.append((name, seed, options))
    return planned


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file; a line that is cut off is left out."""
    records = list[dict[str, Any]]()
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


# Reports


def costs(options: Options) -> list[float]:
    """Return the multiply-adds of a run's exits, in millions."""
    whole = [cost / 1e6 for cost in exit_costs(TRUNKS[options.trunk], options.critics)]
    return whole[options.alone - 1 : options.alone] if options.alone else whole


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return one row per variant: multiply-adds in M, and percent (mean and deviation over seeds) of every exit.

    The gain is on validation, in points: over the same method without further settings, or of a method over `own`.
    """
    rows = dict[tuple[str, str], list[dict[str, Any]]]()
    for record in records:
        rows.setdefault((record["name"], json.dumps(record["options"])), []).append(record)
    by_name = {(record["name"], record["seed"], record["options"]["epochs"]): record for record in records}
    columns = ("validation", "test", "validation_averaged", "test_averaged")
    titles = (column.replace("_", " ") for column in columns)
    heads = ("run", "epochs", "seeds", "M multiply-adds", "gain", *titles, "seconds")
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for (name, _), group in rows.items():
        options = Options(**{key: _tuples(value) for key, value in group[0]["options"].items()})
        of_cost = " ".join(f"{cost:.1f}" for cost in costs(options))
        cells = [name, str(options.epochs), str(len(group)), of_cost, gain(group, by_name)]
        for column in columns:
            per_exit = zip(*(record[column] for record in group), strict=True)
            cells.append(", ".join(spread(values) for values in per_exit))
        cells.append(f"{statistics.fmean(record['seconds'] for record in group):.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def gain(group: Sequence[dict[str, Any]], by_name: dict[tuple[str, int, int], dict[str, Any]]) -> str:
    """Return how much better every exit is than in the run that a variant is compared with, for the same seeds."""
    trunk, _, settings = group[0]["name"].partition("/")
    method, _, more = settings.partition("+")
    base = f"{trunk}/{method if more else 'own'}"
    differences = list[list[float]]()
    for record in group:
        other = by_name.get((base, record["seed"], record["options"]["epochs"]))
        if other is None or other is record:
            continue
        alone = record["options"]["alone"] if len(other["validation"]) > 1 else 0
        against = other["validation"][alone - 1 : alone] if alone else other["validation"]
        differences.append([100 * (a - b) for a, b in zip(record["validation"], against, strict=True)])
    return ", ".join(f"{statistics.fmean(values):+.2f}" for values in zip(*differences, strict=True))


def spread(values: Sequence[float]) -> str:
    """Write accuracies as a mean in percent, with the standard deviation if there are several."""
    mean = f"{100 * statistics.fmean(values):.2f}"
    return mean if len(values) < 2 else f"{mean} ±{100 * statistics.stdev(values):.2f}"


def listing(levers_on: str) -> str:
    """Return trunks with the cost of their exits and the critics' share of it, settings, and the default sweep."""
    lines = ["trunks: M multiply-adds of exits (critic's share of it, its widths at 16x16 and 8x8)"]
    for name, trunk in TRUNKS.items():
        critics = Options(trunk=name).critics
        before, whole = trunk_costs(trunk)[0], exit_costs(trunk, critics)
        exits = zip(whole, before, widths(trunk, critics), strict=False)
        cells = [f"{cost / 1e6:.1f} ({1 - fixed / cost:.0%}, {a}-{b})" for cost, fixed, (a, b) in exits]
        lines.append(f"  {name}: {', '.join([*cells, f'{whole[-1] / 1e6:.1f}'])}")
    lines.append("settings:")
    lines += [f"  {name}: {values}" for name, values in SETTINGS.items()]
    for number, group in enumerate(sweep(levers_on), start=1):
        lines.append(f"sweep, part {number}: {len(group)} runs a seed")
        lines += [f"  {name}" for name in group]
    return "\n".join(lines)


def _tuples(value: Any) -> Any:
    return tuple(_tuples(part) for part in value) if isinstance(value, list) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="class folders of JPEG files, or a file of --cache")
    parser.add_argument("--cache", type=Path, help="write all of --data into this one file, and end")
    parser.add_argument("--out", type=Path, default=Path("levers.jsonl"), help="results, one line a run")
    parser.add_argument("--only", nargs="+", help="names, or patterns over the default sweep")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--levers-on", default="earlywide", choices=sorted(TRUNKS), help="the trunk of parts 3 and 4")
    parser.add_argument("--set", type=override, action="append", default=[], help="key=value for all runs, repeatable")
    parser.add_argument("--limit-seconds", type=float, default=float("inf"), help="from the start of the program")
    parser.add_argument("--concurrent", type=int, help="runs side by side; 12 on a GPU, 1 on a CPU")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--eager", action="store_true", help="no CUDA graphs")
    parser.add_argument("--search-kernels", action="store_true", help="let cuDNN time its kernels for every new shape")
    parser.add_argument("--samples", type=int, help="only so many images of each split, for a try")
    parser.add_argument("--list", action="store_true", help="print trunks, settings and the sweep, and end")
    parser.add_argument("--table", action="store_true", help="print the results of --out, and end")
    parser.add_argument("--time", action="store_true", help="measure steps of each variant alone, train nothing")
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.start = time.perf_counter()
    if args.list:
        print(listing(args.levers_on))
        return
    if args.table:
        print(table(read_records(args.out)))
        return
    if args.data is None or not args.data.exists():
        parser.error(f"expected --data with class folders of JPEG files or a file of --cache, got {args.data}")
    if args.cache:
        write_cache(read_files(args.data), args.cache)
        return
    planned = plan(args)
    if args.processes > 1 and args.part is None:
        commands = [[sys.executable, *sys.argv, "--part", str(part)] for part in range(args.processes)]
        for process in [subprocess.Popen(command) for command in commands]:
            process.wait()
        return
    if args.part is not None:
        planned = planned[args.part :: args.processes]
    if not planned:
        print(f"All runs are in {args.out}.")
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = args.search_kernels
    device = torch.device(args.device)
    data = load(args.data, device, args.samples)
    if args.time:
        time_steps(planned, data)
        return
    args.concurrent = args.concurrent or (12 if device.type == "cuda" else 1)
    print(f"{len(planned)} runs to go; data ready after {time.perf_counter() - args.start:.1f} s", flush=True)
    with args.out.open("a", encoding="utf-8") as file:
        for record in drive(planned, data, args):
            file.write(json.dumps(record) + "\n")
            file.flush()
            exits = " ".join(f"{100 * value:.2f}" for value in record["validation"])
            seconds = time.perf_counter() - args.start
            print(f"{seconds:6.1f} s  {record['name']} seed {record['seed']}: {exits}", flush=True)


if __name__ == "__main__":
    main()
