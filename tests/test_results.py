"""The tables of README, docs/results.md and docs/exits.md are those of their JSON files in benchmarks/results."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path

HOUSE = Path(__file__).parent.parent
RESULTS = (HOUSE / "docs" / "results.md").read_text(encoding="utf-8")


def result(name: str) -> dict:
    return json.loads((HOUSE / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def spread(values: list[float], digits: int = 2) -> str:
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def cells(first_cell: str, text: str = RESULTS) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {first_cell}"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_the_tables_of_exits_worth_choosing_are_those_of_the_committed_result():
    figures = {(figure["row"], figure["column"]): figure for figure in result("exits_small")["figures"]}
    for page, data in (("README.md", ""), ("docs/exits.md", ", CIFAR-10 (JPEG)")):
        text = (HOUSE / page).read_text(encoding="utf-8")
        rows = re.findall(rf"^\| ((?:LCT|joint|alone|post-hoc).*?){re.escape(data)} \|", text, re.MULTILINE)
        assert len(rows) >= 3
        for share in (40, 60):
            rule = figures["LCT, confidence rules, ResNet-14, CIFAR-10 (JPEG)", f"Mean {share}%"]
            words = f"{rule['mean']:.2f}% at a mean of {rule['detail'][0]['flops'] / 1e6:.1f}M"
            assert words in " ".join(text.split())
        for row in rows:
            of_exits = [figures[f"{row}, CIFAR-10 (JPEG)", column] for column in ("Exit 1", "Exit 2", "Exit 3", "Main")]
            shown = [f"{figure['mean']:.2f} at {figure['detail'][0]['flops'] / 1e6:.1f}M" for figure in of_exits]
            assert cells(f"{row}{data} |", text) == shown


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
    overhead = result("overhead")
    for form, words in (("per-sample", "training step, one loss per sample"), ("scalar", "training step, scalar loss")):
        ratios = [row["median_ratio"] for row in overhead["training_time"] if row["form"] == form]
        assert cells(words)[:2] == [f"{ratio:.2f}" for ratio in ratios]
    for by in ("memory", "layers"):
        shares = [row[by]["share"] for row in overhead["saved_bytes"]]
        assert cells(f"bytes saved for backward, cut by {by}")[:2] == [f"{share:.2f}" for share in shares]
    networks = {"resnet50": "ResNet-50, 32x32", "resnet34": "ResNet-34, 96x96", "resnet18": "ResNet-18, 128x128"}
    for name, words in networks.items():
        rows = [row for row in result("runtime")["rows"] if row["network"] == name]
        for way, how in (("run", "`run` |"), ("stream", "`stream` |"), ("asking", "`run`, asking |")):
            assert cells(f"{words}: {how}") == [f"{row[way]['median_ratio']:.2f}" for row in rows]
        assert all(row["same_bits"] for row in rows)
    rows = result("single_file")["single_file"]
    for words, way in (("straight to the exit", "alone"), ("every critic on the way", "asking")):
        assert cells(f"ResNet-50, 32x32: one file, {words} |") == [f"{row[way]['median_ratio']:.2f}" for row in rows]
    assert all(row["same_as_resumable"] for row in rows)


def test_the_tables_of_providers_and_of_joining_are_those_of_the_committed_results():
    rows = [row for row in result("providers")["rows"] if row["provider"] == "openvino"]
    for network, words in (("resnet20", "ResNet-20"), ("resnet50", "ResNet-50")):
        for precision in ("float32", "int8"):
            exits = [row for row in rows if (row["network"], row["precision"]) == (network, precision)]
            largest = max(row["difference"] / row["largest_logit"] for row in exits)
            expected = [*(f"{row['median_ratio']:.2f}" for row in exits), f"{largest:.1e}"]
            assert cells(f"{words}, {precision}, time") == expected
    batching = result("batching")
    for provider, words in (("cpu", "CPU"), ("openvino", "OpenVINO")):
        rows = [row for row in batching["throughput"] if row["provider"] == provider]
        assert cells(f"{words}, each alone") == [f"{row['alone']:,.0f}" for row in rows]
        assert cells(f"{words}, joining |") == [f"{row['joining']:,.0f}" for row in rows]
        assert cells(f"{words}, joining as") == [f"{row['ratio']:.2f}" for row in rows]
        assert rows[-1]["ratio"] > 2
    for way, words in (("alone", "each alone"), ("joining", "joining")):
        rows = [row for row in batching["loads"] if row["way"] == way]
        assert cells(f"in time, {words} |") == [f"{row['on_time_share']:.2%}" for row in rows]
        assert cells(f"shed, {words} |") == [f"{row['shed_share']:.2%}" for row in rows]
        assert cells(f"mean exit, {words} |") == [f"{row['mean_exit']:.2f}" for row in rows]


def test_the_tables_of_rules_and_of_int8_are_those_of_the_committed_results():
    runs = result("confidence")["runs"]
    for k, first in enumerate(runs[0]["at_exits"]):
        rows = [run["at_exits"][k]["best"] for run in runs]
        assert cells(f"the mean cost of exit {first['exit']}") == [
            f"{first['budget'] / 1e6:.1f}M",
            spread([100 * run["exits"][first["exit"] - 1]["test"]["value"] for run in runs]),
            spread([100 * row["rule"]["accuracy"]["value"] for row in rows]),
            spread([row["cost_to_budget"] for row in rows], 3),
            ", ".join(f"{row['p']:.0e}" for row in rows),
        ]
    int8_exits = result("int8")["exits"]
    assert cells("int8, time as multiple")[:4] == [f"{row['int8']['median_ratio']:.2f}" for row in int8_exits]
    for kind in ("float32", "int8"):
        assert cells(f"test accuracy, {kind}")[:4] == [f"{row[f'{kind}_test']['value']:.2%}" for row in int8_exits]


def test_the_table_of_compression_is_that_of_the_committed_result():
    names, moments = [], (statistics.fmean, statistics.stdev)
    for row in result("compression")["rows"]:
        number = re.search(r"[\d.]+$", row["run"])
        rest = number.group() if number else ""
        which = {
            "LCT": "main" if row["exit"] == 4 else f"exit {row['exit']}",
            "alone": f"exit {rest}",
            "narrower": f"{rest} wide",
            "pruned": f"to {float(rest or 0):.0%}",
        }
        name = f"{row['way']}, {which[row['way']]}" if row["way"] in which else row["way"]
        names.append(name)
        assert cells(f"{name} |") == [
            f"{statistics.fmean(row['flops']) / 1e6:.1f}M",
            f"{statistics.fmean(row['params']) / 1e3:.0f}k",
            " ± ".join(f"{100 * f(row['test']):.2f}" for f in moments[: len(row["seeds"])]),
            f"{row['latency']['median_ratio']:.2f}",
            f"{100 * row['int8_test']:.2f}",
            f"{row['int8_latency']['median_ratio']:.2f}",
        ], name
    assert len(set(names)) == len(names) > 10


def test_the_tables_of_the_server_are_those_of_the_committed_result():
    serving = result("serving")
    loads = sorted({row["load"] for row in serving["rows"]})
    assert cells("load, as multiple") == [f"{load}" for load in loads]
    for words, mode, name in (
        ("in time, as deep as time allows", "anytime", "on_time_share"),
        ("shed, as deep as time allows", "anytime", "refused_share"),
        ("test accuracy, as deep as time allows", "anytime", "accuracy"),
        ("in time, fixed depth", "fixed", "on_time_share"),
        ("shed, fixed depth", "fixed", "refused_share"),
    ):
        of_load = [
            [100 * row[name] for row in serving["rows"] if (row["load"], row["mode"]) == (load, mode)] for load in loads
        ]
        assert cells(words) == [spread(values) for values in of_load], words
    assert all(row["not_the_sub_models"] == 0 for row in serving["rows"])
    assert cells("milliseconds of a binary request over")[:4] == [
        f"{1e3 * serving['http'][str(i)]['more_p50']:.2f}" for i in (1, 2, 3, 4)
    ]
    faults = result("faults")
    for words, name in (("two processes that", "hog"), ("20 clients a second", "gone"), ("timings that give", "slow")):
        row = faults[name]
        assert cells(words) == [f"{row['on_time_share']:.2%}", f"{row['refused_share']:.2%}"]
    assert faults["sigterm"]["lost"] == 0 and faults["sigterm"]["ended_with"] == 0


def test_the_tables_of_workers_are_those_of_the_committed_result():
    workers, names = result("workers"), ("resnet50", "resnet20", "lstm")

    def expect_cells(cell: str, expected: list[str]) -> None:
        assert cells(cell) == expected, cell

    rows = [workers["compare"][name] for name in names]
    for words, variant in (
        ("backprop, 1 process", "backprop"),
        ("1F1B, 2 workers", "1f1b"),
        ("GPipe, 2 workers", "gpipe"),
        ("DistributedDataParallel, 2 processes", "ddp"),
    ):
        faster = [row["lct_times_faster_than"][row["best"].get(variant, variant)]["median"] for row in rows]
        expect_cells(words, [f"{ratio:.2f}" for ratio in faster])
    for words, wire in (("float32", "exact"), ("bf16 for both", "bf16")):
        faster = workers["throttled"][wire]["faster"]["median"]
        expect_cells(f"the same, link of 100 Mbit/s, {words}", [f"{faster:.2f}", "", ""])
    expect_cells("period over", [f"{row['period_to_slowest_compute']['median']:.3f}" for row in rows])
    expect_cells("waiting and", [", ".join(f"{share['median']:.1%}" for share in row["waiting_share"]) for row in rows])
    expect_cells("period by the", [f"{workers['simulator'][name]['lct']['ratio']['median']:.2f}" for name in names])
    for words, N, way in (
        ("largest worker's memory over backprop's, N = 2", "2", "allocated"),
        ("largest worker's memory over backprop's, N = 4", "4", "allocated"),
        ("the same as resident memory, N = 4", "4", "resident"),
    ):
        of_images, of_text = (workers["memory"][name][N]["largest_share"][way] for name in ("resnet50", "lstm"))
        expect_cells(words, [f"{of_images:.2f}", "", f"{of_text:.2f}"])
    for words, name, sizes in (
        ("ResNet-50, simulated", "resnet50", (4,)),
        ("LSTM of 4 layers, simulated", "lstm", (4,)),
        ("ResNet-152, simulated", "resnet152", (4, 8, 16)),
        ("LSTM of 16 layers, simulated", "lstm16", (4, 8, 16)),
    ):
        scaled = [workers["scaling"][f"{name}-{W}"] for W in sizes]
        both = [f"{row['lct_speedup']:.1f}, {row['lct_times_faster_than_pipelines']:.1f}" for row in scaled]
        expect_cells(words, [*both, *[""] * (3 - len(both))])


def test_the_tables_of_experiments_are_those_of_the_committed_results():
    def shown(name: str, row: str, column: str, digits: int = 2) -> str:
        figures = result(f"{name}_small")["figures"]
        figure = next(f for f in figures if (f["row"], f["column"]) == (row, column))
        if figure["mean"] is None:
            return "not yet run"
        spread = "" if figure["deviation"] is None else f" ± {figure['deviation']:.{digits}f}"
        return f"{figure['mean']:.{digits}f}{spread}"

    for data in ("MNIST", "Fashion-MNIST"):
        columns = ("BP", "ADMM", "DNI_n1", "LCT_n1", "LCT_n1, own loss")
        assert cells(f"MLP, {data}") == [shown("table3", f"MLP, {data}", column) for column in columns]
    for data in ("CIFAR-10 (JPEG)", "Fashion-MNIST"):
        row = f"ResNet-20, {data}"
        exits = [shown("table7", f"LCT_n3, {row}", column) for column in ("Sub_1", "Sub_2", "Sub_3", "Main")]
        assert cells(row) == [shown("table1", row, "BP"), *exits]
        for words, way in (
            ("joint losses", "joint losses"), ("post-hoc exits", "post-hoc exits behind BP"), ("alone", "alone by BP"),
        ):  # fmt: skip
            exits = [shown("table7", f"{way}, {row}", column) for column in ("Sub_1", "Sub_2", "Sub_3", "Main")]
            assert cells(f"{words}, {data}") == [shown("table1", row, "BP"), *exits]
        for method in ("LCT", "DNI"):
            assert cells(f"{method}, {data}") == [shown("table1", row, f"{method}_n{n}") for n in (1, 2, 3)]
        jointly = ("joint losses, N = 2", "joint losses, N = 3", "joint losses")
        assert cells(f"jointly, {data}") == [shown("table7", f"{way}, {row}", "Main") for way in jointly]
    for layers in (2, 3, 4):
        ways = ("BP", "LCT", "LCT, own loss", "LCT, default")
        expected = [shown("table5", f"{way}, King James Bible", f"{layers} layers", 3) for way in ways]
        assert cells(f"LSTM, {layers} layers") == expected
    for figure in result("critics_small")["figures"]:
        if figure["column"] == "Main":
            assert cells(f"{figure['row']} |")[-1] == shown("critics", figure["row"], "Main")


def test_the_table_of_a_trained_network_is_that_of_the_committed_result():
    pretrained = result("pretrained")
    for key, words in (
        ("cross-entropy", "frozen, exits by cross-entropy"),
        ("distillation", "frozen, exits by distillation"),
        ("paper", "frozen, exits by (5)"),
        ("tuned_by_lct", "ImageNet weights, all tuned by LCT"),
        ("from_nothing", "from scratch, by LCT"),
    ):
        tests = [f"{100 * exit_['test']:.2f}%" for exit_ in pretrained[key]["exits"]]
        assert cells(words) == [f"{pretrained[key]['seconds']:.0f} s", *tests]
    assert all(pretrained[key]["main_same_to_the_bit"] for key in ("cross-entropy", "distillation", "paper"))


def test_the_table_of_load_generators_is_that_of_the_committed_result():
    rows = result("load_generators")["rows"]
    generators = cells("requests a second (p50")
    assert {row["generator"] for row in rows} == set(generators)
    for name, connections in {(row["format"], row["connections"]): None for row in rows}:
        loads = {
            row["generator"]: (row["requests_per_second"], row["milliseconds"]["50"], row["milliseconds"]["99"])
            for row in rows
            if (row["format"], row["connections"]) == (name, connections)
        }
        shown = ["{:.0f} ({:.2f}, {:.2f})".format(*loads[generator]) for generator in generators]
        assert cells(f"{name}, {connections} connection{'s' if connections > 1 else ''} ") == shown
