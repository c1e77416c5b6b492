"""What going through the groups one by one costs beside running a whole exit at once.

For every exit: `run` (groups 1..i, critic i), `stream` (every critic on the way) and a run that asks behind every group
whether to stop (a confidence that nothing reaches), each against the file exit_i.onnx in a plain onnxruntime session;
batch 1, one thread, in turns, medians of ratios. Logits are compared bit by bit.

    anytime-lct train --recipe benchmarks/serving.toml --run-dir runs/serving
    python benchmarks/runtime.py --run runs/serving [--rounds 200]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from measuring import RESULTS, ratios, write
from serving import prepare

from anytime_lct.budget import Budget
from anytime_lct.runtime import AnytimeSession


def beside_whole(session: AnytimeSession, exit: int, x: np.ndarray, rounds: int) -> dict[str, Any]:
    """Ratios of the ways to exit `exit` to the whole file, and whether all say the same to the bit."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    whole = onnxruntime.InferenceSession(session.bundle.exit(exit), options, providers=["CPUExecutionProvider"])

    def at_once() -> np.ndarray:
        return np.asarray(whole.run(None, {"input": x})[0])

    def run() -> np.ndarray:
        return session.run_to(exit, x).logits

    def stream() -> np.ndarray:
        return next(answer for answer in session.stream(x) if answer.exit == exit).logits

    def asking() -> np.ndarray:
        return session.run(x, Budget(exit=exit), min_confidence=1.0, measure="margin").logits

    ways = {"run": run, "stream": stream, "asking": asking}
    found = ratios([at_once, *ways.values()], rounds, warmup=20)
    same = all(np.array_equal(at_once(), way()) for way in ways.values())
    return {"exit": exit, "whole_seconds": found[0]["median_seconds"], "same_bits": same} | {
        name: row for name, row in zip(ways, found[1:], strict=True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/serving"))
    parser.add_argument("--bundle", type=Path, help="Where the export is kept; default: beside the run.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=RESULTS)
    told = parser.parse_args()
    session = prepare(told.run, told.bundle or told.run.with_name(f"{told.run.name}.bundle"))
    shape = [int(side) for side in session.manifest.input_shape[1:]]
    x = np.random.default_rng(0).standard_normal((1, *shape), dtype=np.float32)
    rows = []
    for exit in session.served:
        row = beside_whole(session, exit, x, told.rounds)
        rows.append(row)
        shown = "  ".join(f"{way} {row[way]['median_ratio']:.4f}" for way in ("run", "stream", "asking"))
        print(f"exit {exit}  {1e3 * row['whole_seconds']:.2f} ms  {shown}  same bits {row['same_bits']}", flush=True)
    write("runtime", {"network": session.manifest.model, "rounds": told.rounds, "rows": rows}, told.out)


if __name__ == "__main__":
    main()
