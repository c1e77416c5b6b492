"""int8 against float32: seconds to every exit, in alternation, accuracy of every exit, and bytes.

Exports both bundles of a trained and analyzed run, and times one image on one thread to every exit, without the
critics before it. Accuracies are those of the run's profile, by torch, and of the int8 graphs, by onnxruntime.

    anytime-lct train --recipe benchmarks/serving.toml --run-dir runs/serving && anytime-lct analyze runs/serving
    python benchmarks/int8.py runs/serving [--data-root DIR] [--rounds 60]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measuring import ratios, write

from anytime_lct.exits.bundle import Bundle
from anytime_lct.exits.profile import Profile
from anytime_lct.run_folder.paths import Changes
from anytime_lct.runtime.session import AnytimeSession
from anytime_lct.verbs import export

SAMPLES = 512


def export_both(run: Path, folder: Path, data_root: str | None) -> dict[str, Bundle]:
    return {
        "float32": export(run, folder / "float32"),
        "int8": export(run, folder / "int8", int8_samples=SAMPLES, changes=Changes(data_root=data_root)),
    }


def measure_exits(bundles: dict[str, Bundle], float_profile: Profile, rounds: int) -> list[dict[str, Any]]:
    """Return a row for every exit: seconds, accuracy and bytes in both precisions."""
    sessions = {name: AnytimeSession(bundle, threads=1) for name, bundle in bundles.items()}
    shape = bundles["int8"].manifest.input_shape[1:]
    x = np.random.default_rng(0).standard_normal((1, *shape)).astype(np.float32)  # type: ignore[misc]
    rows = []
    for i in bundles["int8"].manifest.served:
        calls = [lambda session=session, i=i: session.run_to(i, x) for session in sessions.values()]
        float_times, int8_times = ratios(calls, rounds)
        float_exit, int8_exit = float_profile.exits[i - 1], bundles["int8"].profile.exits[i - 1]
        row = {
            "exit": i,
            "float32_seconds": float_times["median_seconds"],
            "int8": int8_times,
            "float32_test": float_exit.test.model_dump(),
            "int8_test": int8_exit.test.model_dump(),
            "float32_validation": float_exit.validation and float_exit.validation.value,
            "int8_validation": int8_exit.validation and int8_exit.validation.value,
            "bytes": {name: bundle.manifest.exits[i].bytes for name, bundle in bundles.items()},
        }
        print(
            f"exit {i}: {1e3 * float_times['median_seconds']:.2f} ms in float32, int8 takes "
            f"{int8_times['median_ratio']:.2f} of it; "
            f"test accuracy {float_exit.test.value:.2%}, in int8 {int8_exit.test.value:.2%}",
            flush=True,
        )
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-root")
    parser.add_argument("--rounds", type=int, default=60)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundles = export_both(arguments.run, Path(folder), arguments.data_root)
        profile = Profile.load(arguments.run)
        result = {
            "network": bundles["int8"].manifest.model,
            "data": profile.data,
            "calibration_samples": SAMPLES,
            "chain_differs_from_whole_exits_by": bundles["int8"].manifest.largest_difference,
            "exits": measure_exits(bundles, profile, arguments.rounds),
        }
    print(f"wrote {write('int8', result)}")


if __name__ == "__main__":
    main()
