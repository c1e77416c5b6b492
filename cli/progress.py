"""What `train` shows on its way, and at the end where it tracked sufficient descent."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anytime_lct.training.events import Epoch, Event


@contextmanager
def shown(metric: str, *, quiet: bool = False) -> Iterator[Callable[[Event], None]]:
    """Give what draws the events of a run: a bar with every exit's training loss and the time left, a line an epoch."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from anytime_lct.training.events import Epoch, Note

    console = Console(stderr=True, quiet=quiet)
    columns = (
        TextColumn("epoch {task.fields[epoch]}"), BarColumn(bar_width=24), TimeRemainingColumn(),
        TextColumn("loss {task.fields[losses]}"),
    )  # fmt: skip
    with Bar(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task("train", total=None, epoch="-", losses="-")

        def show(event: Event) -> None:
            if isinstance(event, Note):  # told even where the progress is not
                Console(stderr=True).print(event.text, highlight=False, soft_wrap=True)
            elif isinstance(event, Epoch):
                console.print(epoch_line(event, metric), highlight=False, soft_wrap=True)
            else:
                bar.update(
                    task,
                    total=event.epochs * event.batches,
                    completed=(event.epoch - 1) * event.batches + event.batch,
                    epoch=f"{event.epoch}/{event.epochs}",
                    losses=" ".join(f"{loss:.3f}" for loss in event.losses),
                )

        yield show


def epoch_line(epoch: Epoch, metric: str) -> str:
    """Say what an epoch came to: training losses and the validation metric, one number an exit."""
    losses = " ".join(f"{loss:.3f}" for loss in epoch.train_losses)
    line = f"epoch {epoch.epoch:3d}  {epoch.seconds:6.1f} s  loss {losses}"
    if epoch.scores:
        shown = (f"{100 * s:.2f}%" if metric == "accuracy" else f"{s:.3f}" for s in epoch.scores)
        line += f"  validation {metric} {' '.join(shown)}"
    return line


def descent(folder: Path) -> dict[str, Any] | None:
    """Sum up a run's descent.jsonl, with its cost as a share of training time; None where nothing was tracked."""
    import dataclasses

    from anytime_lct.descent import summarise
    from anytime_lct.run_folder import folder as run_folder
    from anytime_lct.run_folder import journal

    lines = journal.read(folder / run_folder.DESCENT)
    if not lines:
        return None
    found = summarise(lines)
    training = sum(line["seconds"] for line in journal.read(folder / run_folder.METRICS))
    return dataclasses.asdict(found) | {"share_of_training": round(found.seconds / training, 4) if training else None}


def descent_line(found: dict[str, Any]) -> str:
    """Say what `descent` found: how often, the smallest sigma, which groups did not descend, and the cost."""
    smallest = " ".join("-" if sigma is None else f"{sigma:.3g}" for sigma in found["smallest_sigma"])
    count = found["measurements"]
    odd = [
        f"{what} in group {i} {times} of {count} times"
        for what, numbers in (("<= 0", found["not_positive"]), ("undefined (true gradient zero)", found["undefined"]))
        for i, times in enumerate(numbers, start=1)
        if times
    ]
    share = "" if found["share_of_training"] is None else f", {100 * found['share_of_training']:.1f}% of training time"
    return (
        f"Sufficient descent (16), measured {count} times: smallest sigma a group {smallest}; "
        f"{', '.join(odd) or 'never <= 0'}; it took {found['seconds']:.1f} s{share}, not counted in it."
    )
