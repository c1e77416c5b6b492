"""The picture of the board: what Prometheus answers to the queries of its panels while a load on the server swings.

    anytime-lct quickstart && anytime-lct export quickstart/run --out bundles/digits
    python docs/board.py bundles/digits

    load --> serve --/metrics--> prometheus --queries of board.json--> docs/pictures/board.png

Needs Debian's prometheus, and what `pip install -e '.[test]'` brings; takes four minutes on two cores. Grafana is not
needed: its panels, cells, units, colours and legends are those of the board, the drawing is by matplotlib.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import yaml
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from load import Exchange, open_loop, request

DOCS = Path(__file__).parent
KIT = DOCS / "deploy"
INTERVAL = 2  # seconds between two readings; prometheus.yaml's are five
WORK, MOST = 0.008, 256  # seconds of a request at the deepest exit, for which it has up to so many inputs
PHASES = ((0.05, 20), (0.5, 60), (2.0, 60), (0.5, 60))  # of what one core answers at full depth, and for how long
WIDTH, ROW = 1000, 25  # pixels: of the picture, and of a row of the board's grid
COLUMNS, GAP = 24, 0.003  # of the grid; between its panels, as a share of the picture
COLOURS = {"green": "#56a64b", "orange": "#ff9830", "red": "#e02f44", "blue": "#3274d9", "purple": "#a352cc"}
PALETTE = [COLOURS["green"], "#f2cc0c", COLOURS["blue"], COLOURS["orange"], COLOURS["red"], COLOURS["purple"]]
PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


@dataclass(frozen=True)
class Curve:
    """One of the series of a panel: its legend, and its values at the times asked for, NaN where there are none."""

    legend: str
    values: np.ndarray


def query(expression: str, interval: int) -> str:
    """Return the expression with the board's variables replaced as Grafana does, for all models."""
    return expression.replace("$__rate_interval", f"{4 * interval}s").replace("$model", ".*")


def legend(template: str, labels: dict[str, str]) -> str:
    """Return a legend with the values of its labels.

    >>> legend("exit {{exit}}", {"exit": "2"})
    'exit 2'
    """
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda name: labels.get(name[1], ""), template)


def text(value: float, unit: str) -> str:
    """Return a value in a unit of Grafana, with three digits.

    >>> text(0.0125, "s"), text(0.5, "percentunit"), text(2e6, "bytes"), text(120.0, "reqps")
    ('12.5 ms', '50%', '1.91 MiB', '120 req/s')
    """
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit == "s":
        factor, name = (1e6, "µs") if 0 < value < 1e-3 else (1e3, "ms") if 0 < value < 1 else (1, "s")
        return f"{factor * value:.3g} {name}"
    if unit == "bytes":
        power = min(int(np.log2(max(value, 1)) // 10), 4)
        return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
    factor, prefix = next((each for each in PREFIXES if abs(value) >= each[0]), (1.0, ""))
    return f"{value / factor:.3g}{prefix}" + {"reqps": " req/s", "short": ""}[unit]


def cell(position: dict[str, int], rows: int) -> tuple[float, float, float, float]:
    """Return a cell of the board's grid, whose rows count from the top, as left, bottom, width, height in shares."""
    bottom = rows - position["y"] - position["h"]
    return position["x"] / COLUMNS, bottom / rows, position["w"] / COLUMNS, position["h"] / rows


def colour(panel: dict[str, Any], name: str, number: int) -> str:
    """Return the colour of a panel's curve by the board's overrides, or by its number."""
    for override in panel["fieldConfig"]["overrides"]:
        if override["matcher"]["options"] == name:
            return COLOURS[override["properties"][0]["value"]["fixedColor"]]
    return PALETTE[number % len(PALETTE)]


def threshold(defaults: dict[str, Any], value: float) -> str:
    """Return the colour of a single value: fixed, or that of the last threshold below it."""
    if "color" in defaults:
        return COLOURS[defaults["color"]["fixedColor"]]
    steps = defaults["thresholds"]["steps"]
    return COLOURS[[step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]]


def draw(board: dict[str, Any], times: np.ndarray, curves: dict[int, list[Curve]]) -> Figure:
    """Draw the panels of a board at their cells: times (T,) in minutes, curves by the panels' ids."""
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    matplotlib.rcParams.update({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False})
    figure = plt.figure(figsize=(WIDTH / 100, rows * ROW / 100), dpi=100, facecolor="#f0f1f3")
    for panel in board["panels"]:
        left, bottom, width, height = cell(panel["gridPos"], rows)
        card = Rectangle((left + GAP, bottom + GAP), width - 2 * GAP, height - 2 * GAP, color="white", zorder=-1)
        figure.add_artist(card)
        figure.text(left + 0.01, bottom + height - 0.01, panel["title"], va="top", weight="bold", size=8.5)
        if panel["type"] == "stat":
            axes = figure.add_axes((left + 0.01, bottom + 0.008, width - 0.02, height - 0.078))
            _draw_value(axes, panel, times, curves[panel["id"]])
        else:
            axes = figure.add_axes((left + 0.066, bottom + 0.064, width - 0.084, height - 0.1))
            _draw_curves(axes, panel, times, curves[panel["id"]])
    return figure


def _draw_value(axes: Axes, panel: dict[str, Any], times: np.ndarray, curves: Sequence[Curve]) -> None:
    """Draw the last value as a number, above the curve."""
    defaults, values = panel["fieldConfig"]["defaults"], curves[0].values
    last = float(values[~np.isnan(values)][-1])
    tint = threshold(defaults, last)
    axes.axis("off")
    axes.fill_between(times, values, color=tint, alpha=0.25, linewidth=0)
    axes.plot(times, values, color=tint, linewidth=0.8)
    axes.set(xlim=(times[0], times[-1]), ylim=(0, np.nanmax(values) * 1.1 + 1e-9))
    axes.text(0.5, 1.25, text(last, defaults["unit"]), transform=axes.transAxes, ha="center", color=tint, size=17)


def _draw_curves(axes: Axes, panel: dict[str, Any], times: np.ndarray, curves: Sequence[Curve]) -> None:
    """Draw curves, one above the other where the board stacks them."""
    defaults = panel["fieldConfig"]["defaults"]
    is_stacked, base = "stacking" in defaults["custom"], np.zeros(len(times))
    for number, curve in enumerate(curves):
        tint, opacity = colour(panel, curve.legend, number), defaults["custom"]["fillOpacity"] / 100
        top = base + np.nan_to_num(curve.values) if is_stacked else curve.values
        axes.fill_between(times, base, top, color=tint, alpha=opacity, linewidth=0)
        axes.plot(times, top, color=tint, linewidth=1, label=curve.legend)
        base = top if is_stacked else base
    axes.set_xlim(times[0], times[-1])
    top = defaults.get("max") or max(axes.get_ylim()[1], 1.0 if defaults["unit"] == "short" else 0.0)
    axes.set_ylim(0, top)
    binary = MultipleLocator(2 ** np.ceil(np.log2(top / 5)))
    axes.yaxis.set_major_locator(binary if defaults["unit"] == "bytes" else MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value, defaults["unit"])))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} min"))
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 5, 10]))
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.tick_params(length=0, labelsize=7)
    columns = 6 if panel["gridPos"]["w"] >= COLUMNS // 2 else 2
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncol=columns, frameon=False, fontsize=7, handlelength=1)


def ask(address: str, path: str = "", **parameters: Any) -> Any:
    """Return the JSON of an address."""
    with urllib.request.urlopen(f"{address}{path}?{urllib.parse.urlencode(parameters)}", timeout=10) as answer:
        return json.load(answer)


def curves_of(panel: dict[str, Any], prometheus: str, times: np.ndarray) -> Iterator[Curve]:
    """Yield what Prometheus answers to a panel's queries at times (T,), in Unix seconds."""
    for target in panel["targets"]:
        span = {"start": times[0], "end": times[-1], "step": INTERVAL}
        answer = ask(prometheus, "/api/v1/query_range", query=query(target["expr"], INTERVAL), **span)
        series = answer["data"]["result"]
        if not series:
            sys.exit(f"The board's panel '{panel['title']}' has no values for '{target['legendFormat']}'.")
        for each in series:
            values = np.full(len(times), np.nan)
            for when, value in each["values"]:
                values[round((when - times[0]) / INTERVAL)] = float(value)
            yield Curve(legend(target["legendFormat"], each["metric"]), values)


def send(address: str, messages: Sequence[bytes], rate: float, seconds: float) -> list[Exchange]:
    """Send messages in turn at a rate, whether or not earlier ones are answered; return what became of them."""
    where = urllib.parse.urlsplit(address)
    return asyncio.run(open_loop(where.hostname or "", where.port or 0, rate, seconds, messages, seed=0))


def messages_for(address: str, model: str) -> tuple[list[bytes], float]:
    """Return requests of different wishes, and how many a second one core answers at full depth."""
    shape = ask(address, f"/v2/models/{model}")["inputs"][0]["shape"][1:]
    rng, host = np.random.default_rng(0), urllib.parse.urlsplit(address).netloc

    def message(samples: int, wishes: dict[str, Any]) -> bytes:
        return request(host, model, rng.standard_normal((samples, *shape), np.float32), wishes)

    def seconds(samples: int) -> float:
        """Return the seconds of a request at full depth."""
        exchanges = send(address, [message(samples, {"mode": "fixed"})], rate=20, seconds=1)
        return statistics.median(each.facts["server_us"] / 1e6 for each in exchanges if each.read() is not None)

    samples = 1
    while (full := seconds(samples)) < WORK and samples < MOST:
        samples *= 2
    deadline = {"timeout": round(6e6 * full)}
    wishes = [deadline] * 12
    wishes += [{**deadline, "min_confidence": 0.9}] * 4 + [{**deadline, "max_flops": "70%"}] * 4
    wishes = [*wishes * 3, {"max_exit": "deep"}]  # the last is refused
    print(f"{samples} inputs a request, {1e3 * full:.1f} ms at full depth, deadline {deadline['timeout'] / 1e3:.0f} ms")
    return [message(samples, each) for each in wishes], 1 / full


def config(target: str) -> str:
    """Return docs/deploy/prometheus.yaml for a server at target, read more often."""
    settings = yaml.safe_load((KIT / "prometheus.yaml").read_text(encoding="utf-8"))
    settings["global"]["scrape_interval"] = f"{INTERVAL}s"
    settings["rule_files"] = [str(KIT / name) for name in settings["rule_files"]]
    settings["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    return yaml.safe_dump(settings)


def write(figure: Figure, path: Path, colours: int = 256) -> None:
    """Write a picture with a palette, which keeps the file small."""
    buffer = io.BytesIO()
    figure.savefig(buffer)
    Image.open(buffer).convert("RGB").quantize(colours).save(path, optimize=True)
    print(f"wrote {path}, {path.stat().st_size / 1000:.0f} kB")


@contextmanager
def running(command: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a command until the end of the block."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def main() -> None:
    (bundle,) = sys.argv[1:]
    program = shutil.which("prometheus") or sys.exit("The board's picture needs prometheus: apt-get install prometheus")
    board = json.loads((KIT / "grafana" / "board.json").read_text(encoding="utf-8"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        there = f"127.0.0.1:{free.getsockname()[1]}"
    serve = [sys.executable, "-m", "anytime_lct.cli.main", "serve", bundle, "--port", "0", "--cores", "1", "--json"]
    with tempfile.TemporaryDirectory() as folder, running(serve) as server:
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["address"].rstrip("/")
        settings = Path(folder, "prometheus.yaml")
        settings.write_text(config(urllib.parse.urlsplit(address).netloc), encoding="utf-8")
        messages, capacity = messages_for(address, Path(bundle).name.removesuffix(".bundle"))
        storage = [f"--storage.tsdb.path={folder}/data", f"--web.listen-address={there}", "--log.level=error"]
        with running([program, f"--config.file={settings}", *storage]):
            time.sleep(3 * INTERVAL)
            start = time.time()
            for share, seconds in PHASES:
                sent = send(address, messages, share * capacity, seconds)
                print(f"{share * capacity:.0f} requests a second: {len(sent)} in {seconds} s")
            times = np.arange(start, time.time(), INTERVAL)
            curves = {panel["id"]: list(curves_of(panel, f"http://{there}", times)) for panel in board["panels"]}
    write(draw(board, (times - start) / 60, curves), DOCS / "pictures" / "board.png")


if __name__ == "__main__":
    main()
