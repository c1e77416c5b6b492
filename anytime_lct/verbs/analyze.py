"""Measure the cost and the quality of every exit of a trained run."""

from __future__ import annotations

from pathlib import Path

from anytime_lct.exits.profile import Profile, weights_sum
from anytime_lct.run_folder import folder as run_folder
from anytime_lct.run_folder import journal


def analyze(run: Path | str, data_root: str | None = None, model: str | None = None) -> Profile:
    """Measure every exit of a run; write profile.json and exits.png, and descent.png where descent was tracked.

    `data_root` is the folder of the data set, if it has moved, and `model` the network, as path/to/file.py:FACTORY,
    where the run's copy of its file cannot be used. Raises CheckpointError, DataError and AnalysisError.

    >>> analyze("runs/digits-resnet-0").exits[0].test.value                            # doctest: +SKIP
    0.9611
    """
    from anytime_lct.analysis import measure, picture  # training processes do not need it

    path = Path(run)
    opened_run, digest = run_folder.open_run(path, model), weights_sum(path)
    data = opened_run.load_data(data_root)
    profile = measure.profile(opened_run.network, data, opened_run.model)
    profile = profile.model_copy(update={"weights": digest})
    profile.save(path / run_folder.PROFILE)
    picture.draw(profile, path / run_folder.PICTURE)
    lines = journal.read(path / run_folder.DESCENT)
    if lines:
        title = f"{profile.model} on {profile.data}: sufficient descent of every layer group"
        picture.draw_descent(lines, path / run_folder.DESCENT_PICTURE, title)
    return profile


def savings_warning(run: Path | str, profile: Profile) -> str:
    """Return a line about the exits of a run that save too little, and what helps (`savings.warning`), or ""."""
    from anytime_lct.training.prepare import warning_on_exits

    recipe, facts = run_folder.read(Path(run))
    return warning_on_exits(recipe, [profile.cost(i).flops for i in range(1, profile.num_groups + 1)], facts)
