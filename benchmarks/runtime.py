"""The cost of running the groups one by one, against running a whole exit at once.

For every exit: `run` (groups 1..i, critic i), `stream` (also every critic before it) and `asking` (also a comparison of
every critic's confidence with a threshold that none reaches), each against the file exit_i.onnx in a plain onnxruntime
session; batch 1, one thread, in alternation, medians of ratios. Logits are compared bit by bit. Weights are random:
time does not depend on them.

    python benchmarks/runtime.py [--rounds 200]
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, ratios, write
from overhead import FACTS, recipe_for

from anytime_lct.counting import component_costs
from anytime_lct.exits.budget import Budget
from anytime_lct.exits.bundle import Bundle, Contents
from anytime_lct.exits.profile import Exit, Profile, Quality
from anytime_lct.export.quantise import Int8
from anytime_lct.export.write import Trained, write_bundle
from anytime_lct.run_folder.build import build_network, example_input
from anytime_lct.runtime.session import AnytimeSession

NEVER_SURE = 1e30
NETWORKS = {
    "resnet50": ("resnet50", 32),
    "resnet34": ("torchvision:resnet34", 96),
    "resnet18": ("torchvision:resnet18", 128),
    "resnet20": ("resnet20", 32),
}


def bundle_of(
    model: str, side: int, folder: Path, *, single: bool = False, int8: bool = False, **options: int
) -> Bundle:
    """Export an untrained network on images of this side, cut in 4, with slim critics; int8 by scales from noise."""
    facts = replace(FACTS, input_shape=(3, side, side))
    network = build_network(recipe_for({"name": model, **options}), facts).eval()
    groups, critics = component_costs(network.groups, network.critics, example_input(facts, 1))
    values = (0.1, 0.2, 0.3, 0.4)  # rising, so that the deepest exit within a budget answers
    qualities = [Quality(value=value, low=value, high=value, loss=1.0, samples=100) for value in values]
    profile = Profile(
        model=model,
        data="random",
        metric="accuracy",
        groups=groups,
        critics=critics,
        exits=tuple(
            Exit(index=i, validation=quality, test=quality, temperature=NEVER_SURE)
            for i, quality in enumerate(qualities, start=1)
        ),
        p_worse=((1.0,) * 4,) * 4,
    )
    noise = np.random.default_rng(0).standard_normal((32, 3, side, side), dtype=np.float32)
    scales = Int8([noise], lambda answers, served: (profile, None)) if int8 else None
    trained = Trained(network, facts, profile, model)
    return write_bundle(trained, folder / "bundle", Contents(single=single), int8=scales)


def compare_with_whole(session: AnytimeSession, exit: int, x: np.ndarray, rounds: int) -> dict[str, Any]:
    """Return the time of every way to reach an exit over that of its whole file, and whether all logits are equal."""
    import onnxruntime  # behind anytime_lct, which switches its telemetry off

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    whole = onnxruntime.InferenceSession(session.bundle.exit(exit), options, providers=["CPUExecutionProvider"])

    def run_whole() -> np.ndarray:
        return np.asarray(whole.run(None, {"input": x})[0])

    def run() -> np.ndarray:
        return session.run_to(exit, x).logits

    def stream() -> np.ndarray:
        return next(answer for answer in session.stream(x) if answer.exit == exit).logits

    def run_with_threshold() -> np.ndarray:
        return session.run(x, Budget(exit=exit), min_confidence=1.0, measure="margin").logits

    ways = {"run": run, "stream": stream, "asking": run_with_threshold}
    times = ratios([run_whole, *ways.values()], rounds, warmup=20)
    same = all(np.array_equal(run_whole(), way()) for way in ways.values())
    return {"exit": exit, "whole_seconds": times[0]["median_seconds"], "same_bits": same} | {
        name: row for name, row in zip(ways, times[1:], strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows = []
    for name, (model, side) in NETWORKS.items():
        x = np.random.default_rng(0).standard_normal((1, 3, side, side), dtype=np.float32)
        with tempfile.TemporaryDirectory() as folder:
            session = AnytimeSession(bundle_of(model, side, Path(folder)))
            for exit in session.served:
                row = compare_with_whole(session, exit, x, arguments.rounds)
                rows.append({"network": name, **row})
                summary = "  ".join(f"{way} {row[way]['median_ratio']:.4f}" for way in ("run", "stream", "asking"))
                duration = f"{1e3 * row['whole_seconds']:.2f} ms"
                print(f"{name} exit {exit}  {duration}  {summary}  same bits {row['same_bits']}", flush=True)
    print(f"wrote {write('runtime', {'rounds': arguments.rounds, 'rows': rows}, arguments.out)}")


if __name__ == "__main__":
    main()
