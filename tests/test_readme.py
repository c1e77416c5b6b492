"""The README's commands and code are run as they stand, in order, in an empty folder; its tree is the tree."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

HOUSE = Path(__file__).parent.parent
README = (HOUSE / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(bash|python)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def test_every_block_runs_as_it_stands(tmp_path):
    """`console` blocks show installing and long runs and are not run; `bash` and `python` blocks are."""
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for kind, block in BLOCKS:
        command = ["bash", "-euo", "pipefail", "-c", block] if kind == "bash" else [sys.executable, "-c", block]
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PATH": programs}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


def test_every_command_has_an_example_here_and_in_its_help():
    from anytime_lct.cli.main import VERBS

    for verb in VERBS:
        assert re.search(rf"^anytime-lct {verb}\b", README, re.MULTILINE), f"the README shows no 'anytime-lct {verb}'"
        help_text = subprocess.run(
            [sys.executable, "-m", "anytime_lct.cli.main", verb, "--help"], check=True, capture_output=True, text=True
        ).stdout
        assert f"Example: anytime-lct {verb}" in " ".join(help_text.split())
        assert "--json" in help_text


def test_the_tree_names_every_file():
    tree = README.partition("## The tree")[2].partition("```")[2].partition("```")[0]
    listed = set(re.findall(r"^\s*([\w.-]+\.(?:py|toml|json|md)|[\w.]+/)", tree, re.MULTILINE))
    for folder in ("anytime_lct", "cli", "models", "benchmarks"):
        for path in (HOUSE / folder).rglob("*.py"):
            if path.name != "__init__.py":
                assert path.name in listed, f"the README's tree lacks {path.relative_to(HOUSE)}"
    for name in listed:
        assert list(HOUSE.rglob(name.rstrip("/"))), f"the README's tree names {name}, which is not there"


def result(name: str) -> dict:
    return json.loads((HOUSE / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def cells(first_cell: str) -> list[str]:
    line = next(line for line in README.splitlines() if line.startswith(f"| {first_cell}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_table_of_exits_is_that_of_the_committed_result():
    profile = result("fashion_mnist")["profile"]
    for exit_ in profile["exits"]:
        i = exit_["index"]
        parts = [*profile["groups"][:i], *profile["critics"][i - 1 : i]]
        flops, params, validation, test = cells("main" if i == 4 else f"exit {i}")
        assert flops == f"{sum(part['flops'] for part in parts) / 1e6:.2f}M"
        assert params == f"{sum(part['params'] for part in parts):,}"
        assert validation == f"{exit_['validation']['value']:.2%}"
        low, high = (f"{100 * exit_['test'][side]:.1f}" for side in ("low", "high"))
        assert test == f"{exit_['test']['value']:.2%} ({low} to {high})"


def test_the_benchmarks_are_those_of_the_committed_result():
    found = result("overhead")
    for form, words in (("per-sample", "training step, one loss per sample"), ("scalar", "training step, scalar loss")):
        ratios = [row["median_ratio"] for row in found["training_time"] if row["form"] == form]
        assert cells(words)[:2] == [f"{ratio:.2f}" for ratio in ratios]
    for by in ("memory", "layers"):
        shares = [row[by]["share"] for row in found["saved_bytes"]]
        assert cells(f"bytes saved for backward, cut by {by}")[:2] == [f"{share:.2f}" for share in shares]
    rows = [row for row in result("runtime")["rows"] if row["network"] == "resnet50"]
    for words, way in (("`stream` up", "stream"), ("`run`, its", "run"), ("`run` that asks", "asking")):
        assert cells(words)[:4] == [f"{row[way]['median_ratio']:.2f}" for row in rows]
    assert all(row["same_bits"] for row in rows)


def test_the_tables_of_rules_and_of_int8_are_those_of_the_committed_results():
    (run,) = result("confidence")["runs"]
    for row in run["at_exits"]:
        rule, fixed = row["best"]["rule"], run["exits"][row["exit"] - 1]["test"]["value"]
        shares = ", ".join(f"{share:.0%} at {'main' if i == '4' else i}" for i, share in rule["shares"].items())
        assert cells(f"the mean cost of exit {row['exit']}") == [
            f"{row['budget'] / 1e6:.0f}M",
            f"{fixed:.2%}",
            f"{rule['accuracy']['value']:.2%}",
            f"{row['best']['cost_to_budget']:.3f}",
            shares,
        ]
    found = result("int8")["exits"]
    assert cells("int8, time as multiple")[:4] == [f"{row['int8']['median_ratio']:.2f}" for row in found]
    for kind in ("float32", "int8"):
        assert cells(f"test accuracy, {kind}")[:4] == [f"{row[f'{kind}_test']['value']:.2%}" for row in found]


def test_the_tables_of_workers_are_those_of_the_committed_result():
    found, names = result("workers"), ("resnet50", "resnet20", "lstm")

    def told(cell: str, expected: list[str]) -> None:
        assert cells(cell) == expected, cell

    rows = [found["compare"][name] for name in names]
    for words, variant in (
        ("backprop, 1 process", "backprop"),
        ("1F1B, 2 workers", "1f1b"),
        ("GPipe, 2 workers", "gpipe"),
        ("DistributedDataParallel, 2 processes", "ddp"),
    ):
        faster = [row["lct_times_faster_than"][row["best"].get(variant, variant)]["median"] for row in rows]
        told(words, [f"{ratio:.2f}" for ratio in faster])
    for words, wire in (("float32", "exact"), ("bf16 for both", "bf16")):
        told(f"the same, link of 100 Mbit/s, {words}", [f"{found['throttled'][wire]['faster']['median']:.2f}", "", ""])
    told("period over", [f"{row['period_to_slowest_compute']['median']:.3f}" for row in rows])
    told("waiting and", [", ".join(f"{share['median']:.1%}" for share in row["waiting_share"]) for row in rows])
    told("period by the", [f"{found['simulator'][name]['lct']['ratio']['median']:.2f}" for name in names])
    for words, N, way in (
        ("largest worker's memory over backprop's, N = 2", "2", "allocated"),
        ("largest worker's memory over backprop's, N = 4", "4", "allocated"),
        ("the same as resident memory, N = 4", "4", "resident"),
    ):
        of_images, of_text = (found["memory"][name][N]["largest_share"][way] for name in ("resnet50", "lstm"))
        told(words, [f"{of_images:.2f}", "", f"{of_text:.2f}"])
    for words, name, sizes in (
        ("ResNet-50, simulated", "resnet50", (4,)),
        ("LSTM of 4 layers, simulated", "lstm", (4,)),
        ("ResNet-152, simulated", "resnet152", (4, 8, 16)),
        ("LSTM of 16 layers, simulated", "lstm16", (4, 8, 16)),
    ):
        scaled = [found["scaling"][f"{name}-{W}"] for W in sizes]
        both = [f"{row['lct_speedup']:.1f}, {row['lct_times_faster_than_pipelines']:.1f}" for row in scaled]
        told(words, [*both, *[""] * (3 - len(both))])


def test_the_tables_of_experiments_are_those_of_the_committed_results():
    def shown(name: str, row: str, column: str, digits: int = 2) -> str:
        figures = result(f"{name}_small")["figures"]
        found = next(f for f in figures if (f["row"], f["column"]) == (row, column))
        if found["mean"] is None:
            return "not yet run"
        spread = "" if found["deviation"] is None else f" ± {found['deviation']:.{digits}f}"
        return f"{found['mean']:.{digits}f}{spread}"

    for data in ("MNIST", "Fashion-MNIST"):
        columns = ("BP", "ADMM", "DNI_n1", "LCT_n1", "LCT_n1, own loss")
        assert cells(f"MLP, {data}") == [shown("table3", f"MLP, {data}", column) for column in columns]
    for data in ("CIFAR-10 (JPEG)", "Fashion-MNIST"):
        row = f"ResNet-20, {data}"
        exits = [shown("table7", f"LCT_n3, {row}", column) for column in ("Sub_1", "Sub_2", "Sub_3", "Main")]
        assert cells(row) == [shown("table1", row, "BP"), *exits]
    row = "ResNet-20, CIFAR-10 (JPEG)"
    for words, way in (("joint losses", "joint losses"), ("post-hoc exits", "post-hoc exits behind BP")):
        exits = [shown("table7", f"{way}, {row}", column) for column in ("Sub_1", "Sub_2", "Sub_3", "Main")]
        assert cells(f"{words}, CIFAR-10 (JPEG)") == [shown("table1", row, "BP"), *exits]
    for layers in (2, 3, 4):
        ways = ("BP", "LCT", "LCT, own loss", "LCT, default")
        found = [shown("table5", f"{way}, King James Bible", f"{layers} layers", 3) for way in ways]
        assert cells(f"LSTM, {layers} layers") == found
    for figure in result("critics_small")["figures"]:
        if figure["column"] == "Main":
            assert cells(f"{figure['row']} |")[-1] == shown("critics", figure["row"], "Main")


def test_the_table_of_a_trained_network_is_that_of_the_committed_result():
    found = result("pretrained")
    for key, words in (
        ("cross-entropy", "frozen, exits by cross-entropy"),
        ("distillation", "frozen, exits by distillation"),
        ("paper", "frozen, exits by (5)"),
        ("tuned_by_lct", "ImageNet weights, all tuned by LCT"),
        ("from_nothing", "from nothing, by LCT"),
    ):
        tests = [f"{100 * exit_['test']:.2f}%" for exit_ in found[key]["exits"]]
        assert cells(words) == [f"{found[key]['seconds']:.0f} s", *tests]
    assert all(found[key]["main_same_to_the_bit"] for key in ("cross-entropy", "distillation", "paper"))
