"""`anytime-lct doctor`: what this machine and this installation have, and which verbs work with it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from anytime_lct.cli.screen import print_json

# What a verb needs beside the base installation, and what some of its options do.
NEEDS = {
    "train": ("quickstart", "inspect", "recipe", "train", "analyze", "thresholds", "export", "reproduce"),
    "serve": ("serve",),
}
OPTIONS = {
    "timm": "train --model timm:NAME",
    "text": "predict --text",
    "datasets": "train --data hf:PATH",
    "webdataset": "train --data wds:SHARDS",
    "sweep": "train --sweep",
    "mlflow": "train --log mlflow",
    "wandb": "train --log wandb",
    "openvino": "predict --provider openvino",
}
PACKAGES = ("anytime-lct", "numpy", "onnxruntime", "torch", "torchvision", "timm", "onnx", "starlette", "openvino")
# As Linux calls them, on x86 and on ARM: what makes float32, int8 and bfloat16 fast.
FLAGS = (
    "avx2", "fma", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimd", "asimddp",
    "i8mm", "bf16", "sve",
)  # fmt: skip


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Show what this machine and this installation have, which verbs work, and what the others need.

    Example: anytime-lct doctor
    """
    import json

    from anytime_lct.cli.screen import grid, say, screen

    report = examine()
    if as_json:
        print_json(json.dumps(report))
        return
    console, machine = screen(), report["machine"]
    gpus = machine["gpus"]
    lines = {
        "machine": f"{machine['processor']}; {machine['system']}",
        "cores": f"{machine['cores']} for this process, of {machine['all_cores']}",
        "instructions": " ".join(machine["instructions"]) or "not known",
        "GPU": ", ".join(gpus)
        if gpus
        else "none that torch can use"
        if gpus is not None
        else "not known without torch",
        "versions": ", ".join(f"{package} {version}" for package, version in report["versions"].items()),
        "providers": ", ".join(report["providers"]),
    }
    for name, text in lines.items():
        say(console, f"{name + ':':14}{text}")
    console.print()
    rows = [[verb, *_state(each["missing"], each["remedy"])] for verb, each in report["verbs"].items()]
    console.print(grid(("verb", "works", "what it needs"), rows, left=("verb", "works", "what it needs")))
    console.print()
    rows = [[each["for"], *_state(each["missing"], each["remedy"])] for each in report["options"].values()]
    console.print(grid(("option", "works", "what it needs"), rows, left=("option", "works", "what it needs")))


def examine() -> dict[str, Any]:
    """Return what this machine and this installation have, as plain values."""
    import os
    import platform

    from anytime_lct.cli.extras import EXTRAS
    from anytime_lct.cli.main import VERBS
    from anytime_lct.runtime.providers import PROVIDERS
    from anytime_lct.stopwatch import machine

    missing = {extra: [name for name in packages if not _is_there(name)] for extra, packages in EXTRAS.items()}
    needs = {verb: extra for extra, verbs in NEEDS.items() for verb in verbs}
    verbs = {verb: _need(needs.get(verb), missing) for verb in VERBS}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "machine": {
            "processor": machine().rpartition(",")[0],
            "system": f"{platform.system()} {platform.machine()}",
            "cores": cores,
            "all_cores": os.cpu_count(),
            "instructions": _instructions(),
            "gpus": None if missing["train"] else _gpus(),
        },
        "versions": {"Python": platform.python_version(), **_versions()},
        "providers": [provider.name for provider in PROVIDERS.values() if provider.is_there],
        "verbs": verbs,
        "options": {extra: {"for": text, **_need(extra, missing)} for extra, text in OPTIONS.items()},
    }


def _need(extra: str | None, missing: dict[str, list[str]]) -> dict[str, Any]:
    """Return the packages of an extra that are missing, and the command that brings them."""
    packages = missing[extra] if extra else []
    return {"works": not packages, "missing": packages, "remedy": f"pip install '.[{extra}]'" if packages else None}


def _state(missing: list[str], remedy: str | None) -> list[str]:
    if not missing:
        return ["yes", ""]
    others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return ["no", f"{remedy} ({missing[0]}{others} missing)"]


def _is_there(package: str) -> bool:
    """Whether a package can be found, without importing it."""
    from importlib.util import find_spec

    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def _versions() -> dict[str, str]:
    from importlib import metadata

    versions = dict[str, str]()
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _instructions() -> list[str]:
    """Return which of FLAGS the first core has; [] where the system does not say."""
    from pathlib import Path

    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8", "replace").splitlines() if cpuinfo.exists() else []
    words = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [flag for flag in FLAGS if flag in words]


def _gpus() -> list[str]:
    """Return the GPUs that torch can use, each with its memory."""
    import torch

    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus]
