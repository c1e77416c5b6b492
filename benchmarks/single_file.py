"""The cost of one ONNX file with all exits, against the resumable session and one file per exit, in alternation."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import ratios, write
from runtime import bundle_of

from anytime_lct.runtime.session import AnytimeSession

N, SIDE = 4, 32


def open_session(path: Path) -> Any:
    """Return a plain session of onnxruntime, on one thread."""
    import onnxruntime  # behind anytime_lct, which switches its telemetry off

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def measure(name: str, rounds: int) -> list[dict[str, Any]]:
    """Time batch 1 on one thread to every exit: `alone` without the critics before it, `asking` with all of them."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = bundle_of(name, SIDE, Path(folder), single=True)
        session, single = AnytimeSession(bundle), open_session(bundle.path / "anytime.onnx")
        x = np.random.default_rng(0).standard_normal((1, 3, SIDE, SIDE), dtype=np.float32)
        for i in range(1, N + 1):
            whole = open_session(bundle.exit(i))

            def one_file(before: float, i: int = i) -> Any:
                thresholds = np.where(np.arange(N - 1) < i - 1, before, 0.0).astype(np.float32)
                logits, exit_ = single.run(None, {"input": x, "thresholds": thresholds})
                assert exit_ == i
                return logits

            def stream(i: int = i) -> Any:
                return next(answer for answer in session.stream(x) if answer.exit == i).logits

            calls = [
                lambda w=whole: w.run(None, {"input": x})[0],
                lambda: one_file(2.0),
                lambda: one_file(1.0),
                lambda i=i: session.run_to(i, x).logits,
                stream,
            ]
            times = ratios(calls, rounds)
            names = ("alone", "asking", "resumable_run", "resumable_stream")
            row = {"network": name, "exit": i, "whole_seconds": times[0]["median_seconds"]}
            row |= dict(zip(names, times[1:], strict=True))
            row["largest_difference"] = float(np.abs(calls[1]() - calls[0]()).max())
            row["same_as_resumable"] = bool(np.array_equal(calls[1](), calls[3]()))
            rows.append(row)
            summary = ", ".join(f"{key} {row[key]['median_ratio']:.3f}" for key in names)
            print(f"{name} to exit {i}, times exit_{i}.onnx: {summary}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=150)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"wrote {write('single_file', {'single_file': measure('resnet50', arguments.rounds)})}")


if __name__ == "__main__":
    main()
