"""The progress of `train`, and its summary of sufficient descent at the end."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anytime_lct.exits.tasks import MetricName
    from anytime_lct.training.events import Epoch, Event, Start


SHOWN_CLASSES = 5


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[Callable[[Event], None]]:
    """Yield a function that shows events: the data and the cuts, a bar with losses and time left, a line per epoch."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from anytime_lct.cli.screen import screen
    from anytime_lct.training.events import Epoch, Note, Start

    console = screen(stderr=True, quiet=quiet)
    columns = (
        TextColumn("epoch {task.fields[epoch]}"), BarColumn(bar_width=24), TimeRemainingColumn(),
        TextColumn("loss {task.fields[losses]}"),
    )  # fmt: skip
    with Bar(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("train", total=None, epoch="-", losses="-")

        metric: MetricName = "accuracy"  # until the run starts

        def show(event: Event) -> None:
            nonlocal metric
            if isinstance(event, Note):  # printed even with `quiet`
                notes = Console(stderr=True) if quiet else console
                notes.print(event.text, highlight=False, markup=False, soft_wrap=True)
            elif isinstance(event, Start):
                metric = event.facts.metric
                console.print(start_line(event), highlight=False, markup=False, soft_wrap=True)
            elif isinstance(event, Epoch):
                console.print(epoch_line(event, metric, console.width), highlight=False, soft_wrap=True)
            else:
                bar.update(
                    task,
                    total=event.epochs * event.batches,
                    completed=(event.epoch - 1) * event.batches + event.batch,
                    epoch=f"{event.epoch}/{event.epochs}",
                    losses=" ".join(f"{loss:.3f}" for loss in event.losses),
                )

        yield show


def start_line(start: Start) -> str:
    """Return the line that a run begins with: its data, its classes and samples, and where the network is cut."""
    from anytime_lct.exits.budget import show_count
    from anytime_lct.savings import shares
    from anytime_lct.training.demand import show_bytes

    facts = start.facts
    row = facts.row
    names = [repr(name) if row.is_text else name for name in facts.classes[:SHOWN_CLASSES]]
    names += ["..."] if len(facts.classes) > SHOWN_CLASSES else []
    samples = "".join(
        f", {count:,} for {split}" for count, split in zip(facts.counts[1:], ("validation", "test"), strict=False)
    )
    training = f"{facts.counts[0]:,} {facts.samples} for training{samples}; " if facts.counts else ""
    size = f" as {'x'.join(map(str, facts.input_shape))}"
    if row.is_text:
        size = f" in {', '.join(facts.encodings).upper()}" if facts.encodings else ""
    cuts = f"cut after {', '.join(start.places)}" if start.places else "not cut"
    memory = "" if start.step_bytes is None else f"; a step takes about {show_bytes(start.step_bytes)} of memory"
    line = f"{facts.name}: {len(facts.classes)} {row.outputs} ({', '.join(names)}){size}; {training}{cuts}"
    if not start.costs:
        return line + memory
    exits = ", ".join(f"{share:.0%}" for share in shares(start.costs)[:-1])
    return f"{line}; exits at {exits} of the main network's {show_count(start.costs[-1])} multiply-adds{memory}"


def epoch_line(epoch: Epoch, metric: MetricName, width: int) -> str:
    """Return an epoch's line, or lines where it is wider than `width`: losses and the metric, one number per exit."""
    from anytime_lct.exits.tasks import METRICS

    losses = " ".join(f"{loss:.3f}" for loss in epoch.train_losses)
    line = f"epoch {epoch.epoch:3d}  {epoch.seconds:6.1f} s  loss {losses}"
    if epoch.scores:
        scores = map(METRICS[metric].show, epoch.scores)
        quality = f"validation {metric} {' '.join(scores)}"
        line += f"  {quality}" if len(line) + len(quality) + 2 <= width else f"\n{quality:>{len(line)}}"
    return line


def descent(folder: Path) -> dict[str, Any] | None:
    """Summarise a run's descent.jsonl, with its cost as a share of training time; None without measurements."""
    import dataclasses

    from anytime_lct.descent import summarise
    from anytime_lct.run_folder import folder as run_folder
    from anytime_lct.run_folder import journal

    lines = journal.read(folder / run_folder.DESCENT)
    if not lines:
        return None
    summary = summarise(lines)
    training = sum(line["seconds"] for line in journal.read(folder / run_folder.METRICS))
    return dataclasses.asdict(summary) | {
        "share_of_training": round(summary.seconds / training, 4) if training else None
    }


def descent_line(summary: dict[str, Any]) -> str:
    """Return a summary by `descent` as a sentence: smallest sigma, groups that did not descend, and the cost."""
    smallest = " ".join("-" if sigma is None else f"{sigma:.3g}" for sigma in summary["smallest_sigma"])
    count = summary["measurements"]
    problems = [
        f"{problem} in group {i} {times} of {count} times"
        for problem, counts in (
            ("<= 0", summary["not_positive"]),
            ("undefined (true gradient zero)", summary["undefined"]),
        )
        for i, times in enumerate(counts, start=1)
        if times
    ]
    share = summary["share_of_training"]
    cost = "" if share is None else f", {100 * share:.1f}% of training time"
    return (
        f"Sufficient descent (16), measured {count} times: smallest sigma a group {smallest}; "
        f"{', '.join(problems) or 'never <= 0'}; it took {summary['seconds']:.1f} s{cost}, not included in it."
    )
