"""Execution providers beside each other: the time of every exit, float32 and int8, as a multiple of the CPU provider's.

Every provider that is there answers the same input, one image at a time, one thread, in alternation; medians of ratios.
The largest difference of any logit is that from the answers which the bundle stores. Weights are random: time does not
depend on them.

    python benchmarks/providers.py [--rounds 100]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, ratios, write
from runtime import bundle_of

from anytime_lct.exits.bundle import Bundle
from anytime_lct.runtime import parity
from anytime_lct.runtime.providers import PROVIDERS
from anytime_lct.runtime.session import AnytimeSession

NETWORKS = {"resnet20": ("resnet20", 32), "resnet50": ("resnet50", 32)}


def compare(bundle: Bundle, rounds: int, names: Sequence[str], batch: int = 1) -> list[dict[str, Any]]:
    """Return a row for every provider by name, the first of which is that of ratio 1, and for every exit."""
    sessions = [AnytimeSession(bundle, provider=name) for name in names]
    differences = [session.check_parity() for session in sessions]
    _, expected = parity.stored(bundle)
    rows = []
    x = np.random.default_rng(1).standard_normal((batch, *map(int, bundle.manifest.input_shape[1:])), dtype=np.float32)
    for exit in bundle.manifest.served:
        times = ratios([partial(session.run_to, exit, x) for session in sessions], rounds, warmup=10)
        for name, of_exits, row in zip(names, differences, times, strict=True):
            facts = {"provider": name, "version": PROVIDERS[name].version, "exit": exit}
            largest = float(np.abs(expected[exit]).max())
            rows.append({**facts, "difference": of_exits[exit], "largest_logit": largest, **row})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--bundles", type=Path, help="where to keep the exported networks; default: nowhere")
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    rows, names = [], [name for name, provider in PROVIDERS.items() if provider.is_there]
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, side) in NETWORKS.items():
            for precision in ("float32", "int8"):
                place = (arguments.bundles or Path(folder)) / f"{name}-{precision}"
                if not place.exists():
                    bundle_of(model, side, place, int8=precision == "int8")
                for row in compare(Bundle.open(place / "bundle"), arguments.rounds, names):
                    rows.append({"network": name, "precision": precision, **row})
                    print(
                        f"{name} {precision} exit {row['exit']} {row['provider']}: "
                        f"{1e3 * row['median_seconds']:.2f} ms, {row['median_ratio']:.2f} of the CPU's, "
                        f"difference {row['difference']:.1e}",
                        flush=True,
                    )
    print(f"wrote {write('providers', {'rounds': arguments.rounds, 'rows': rows}, arguments.out)}")


if __name__ == "__main__":
    main()
