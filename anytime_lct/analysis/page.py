"""The page of a run: one HTML file that needs no network, with what its exits cost, give, and get right."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np

from anytime_lct.analysis import svg
from anytime_lct.analysis.answers import Answers
from anytime_lct.analysis.svg import Plot, colour
from anytime_lct.analysis.threshold_search import stopping_costs
from anytime_lct.exits.budget import show_count, show_seconds
from anytime_lct.exits.profile import Profile
from anytime_lct.exits.selector import pareto_front
from anytime_lct.task import Facts

MOST_CLASSES = 30  # of a confusion that is drawn as a square
WIDE = (960, 400)
MOST_CONFUSED, MOST_POINTS, STEPS = 8, 400, 60
CSS = Path(__file__).parent / "page.css"


def document(title: str, lead: str, sections: Sequence[str]) -> str:
    """Return a page with its style, in one file."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>\n{CSS.read_text(encoding='utf-8')}</style></head><body><main>\n"
        f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>\n'
        + "\n".join(sections)
        + "\n<footer>Written by anytime-lct.</footer></main></body></html>\n"
    )


def page(profile: Profile, facts: Facts, answers: Answers | None) -> str:
    """Return the page of a profile, and of the answers to its test split, None for a text."""
    sections = [curve(profile), table(profile), latencies(profile)]
    if answers is not None and facts.row.is_numbers:
        sections.append(scatter(profile, facts, answers))
    elif answers is not None:
        sections += [agreement(profile, answers), stopping(profile, answers), reliability(profile, answers)]
        sections.append(confusion(profile, facts, answers))
    return document(f"{profile.model} on {profile.data}", lead(profile), sections)


def lead(profile: Profile) -> str:
    """Return the sentence that the page opens with: what the exit that loses least for its cost gives."""
    main, metric = profile.num_groups, profile.row
    test, samples = profile.exits[-1].test, profile.exits[-1].test.samples
    text = (
        f"{main} exits; the main network has a test {metric.name} of {metric.show(test.value)} on {samples:,} samples."
    )
    cheaper = [i for i in pareto_front(profile) if i != main and profile.cost(main).flops]
    if not cheaper:
        return text
    i = max(cheaper, key=profile.merit)
    share = profile.cost(i).flops / profile.cost(main).flops
    return f"{text} Exit {i} has {metric.show(profile.exits[i - 1].test.value)} at {share:.0%} of its multiply-adds."


def curve(profile: Profile) -> str:
    """Draw the quality of every exit over its multiply-adds."""
    metric, exits, count = profile.row, profile.exits, profile.num_groups
    costs = [profile.cost(exit.index).flops for exit in exits]
    bounds = [metric.scale * bound for exit in exits for bound in (exit.test.low, exit.test.high)]
    slack = 0.12 * (max(bounds) - min(bounds) or 1.0)
    y = (min(bounds) - slack, max(bounds) + slack)
    y = y if metric.rises else (y[1], y[0])
    plot = Plot((0.0, 1.08 * max(costs)), y, WIDE, "Quality of every exit over its multiply-adds")
    plot.axes("multiply-adds", metric.axis, show_count, lambda value: f"{value:g}")
    front = [i - 1 for i in pareto_front(profile)]
    plot.line([(costs[k], metric.scale * exits[k].test.value) for k in front], "stroke:var(--accent);stroke-width:2")
    for k, exit in enumerate(exits):
        value = metric.scale * exit.test.value
        tint = colour(k, count) if k in front else "var(--both)"
        plot.whisker(costs[k], metric.scale * exit.test.low, metric.scale * exit.test.high, tint)
        words = f"{_name(profile, k)}: {metric.show(exit.test.value)} at {show_count(costs[k])}"
        plot.dot((costs[k], value), f"fill:{tint};stroke:var(--card);stroke-width:1.5", words, 6)
        plot.label((costs[k], value), _name(profile, k), "end", (-9, -9))
    return _section(
        f"Test {metric.name} over multiply-adds",
        "One multiply-add counts one, for one sample. Bars are 95% intervals on test; the line joins the exits that no "
        f"other beats in cost and quality on {profile.split}.",
        f'<div class="card">{plot.svg()}</div>',
    )


def table(profile: Profile) -> str:
    """Return the table of exits."""
    metric, main, front = profile.row, profile.cost(profile.num_groups), pareto_front(profile)
    rows: list[str] = []
    for k, exit in enumerate(profile.exits):
        cost, test = profile.cost(exit.index), exit.test
        cells = [
            f"{_name(profile, k)}{' *' if exit.index in front else ''}",
            f"{show_count(cost.flops)} <small>{cost.flops / max(1, main.flops):.0%}</small>",
            f"{show_count(cost.params)} <small>{cost.params / max(1, main.params):.0%}</small>",
            "–" if exit.validation is None else metric.show(exit.validation.value),
            f"{metric.show(test.value)} <small>{metric.show(test.low)} to {metric.show(test.high)}</small>",
            "–" if exit.latency is None else show_seconds(exit.latency.seconds),
        ]
        rows.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    heads = ("exit", "multiply-adds", "parameters", f"validation {metric.name}", f"test {metric.name}", "latency here")
    head = "".join(f"<th>{each}</th>" for each in heads)
    return (
        f'<div class="card"><table><tr>{head}</tr>{"".join(rows)}</table></div>'
        f'<p class="note">Shares are of the main network; the interval is 95%. *: no other exit is both cheaper and '
        f"better on {profile.split}.</p>"
    )


def latencies(profile: Profile) -> str:
    """Draw the latency of every exit on this machine; "" without one."""
    times = [(k, exit.latency) for k, exit in enumerate(profile.exits) if exit.latency is not None]
    if not times:
        return ""
    longest = max(latency.seconds for _, latency in times)
    plot = Plot(
        (0.0, 1.12 * longest), (len(times) - 0.4, -0.6), (960, 24 + 34 * len(times)), "Latency of every exit", 12
    )
    for row, (k, latency) in enumerate(times):
        words = f"{_name(profile, k)}: {show_seconds(latency.seconds)}"
        plot.box((0.0, latency.seconds), (row + 0.3, row - 0.3), colour(k, profile.num_groups), words)
        plot.label((latency.seconds, row), show_seconds(latency.seconds), "start", (6, 4))
        plot.label((0.0, row), _name(profile, k), "end", (-7, 4))
    engine, machine = times[0][1].engine, times[0][1].machine
    return _section(
        "Latency here", f"One sample, one thread, by {engine} on {machine}.", f'<div class="card">{plot.svg()}</div>'
    )


def agreement(profile: Profile, answers: Answers) -> str:
    """Draw which samples each exit gets right, beside the main network."""
    correct, main = answers.correct, answers.correct[-1]
    kinds = (
        ("right, as the main network", "var(--right)", correct & main),
        ("right, where the main network is wrong", "var(--other)", correct & ~main),
        ("wrong, where the main network is right", "var(--wrong)", ~correct & main),
        ("wrong, as the main network", "var(--both)", ~correct & ~main),
    )
    count = len(correct)
    plot = Plot((0.0, 100.0), (count - 0.4, -0.6), (960, 60 + 36 * count), "Which samples each exit gets right")
    plot.axes("samples, %", "", lambda value: f"{value:g}", lambda value: "")
    for k in range(count):
        left = 0.0
        for words, fill, mask in kinds:
            share = 100 * float(mask[k].mean())
            plot.box((left, left + share), (k + 0.32, k - 0.32), fill, f"{_name(profile, k)}, {words}: {share:.1f}%")
            left += share
        plot.label((0.0, k), _name(profile, k), "end", (-7, 4))
    never, always = float((~correct).all(axis=0).mean()), float(correct.all(axis=0).mean())
    return _section(
        "Which samples each exit gets right",
        f"Every exit is right on {always:.1%} of the test samples, and every exit is wrong on {never:.1%}.",
        f'{_legend([(words, fill) for words, fill, _ in kinds])}<div class="card">{plot.svg()}</div>',
    )


def stopping(profile: Profile, answers: Answers) -> str:
    """Draw where samples stop under a confidence, and what that costs and gives."""
    count, thresholds = profile.num_groups, np.linspace(0.0, 1.0, STEPS + 1)
    rows = [answers.stops(float(each)) for each in thresholds]
    shares = np.array([[float((row == k).mean()) for k in range(count)] for row in rows])
    cumulated = np.concatenate([np.zeros((len(rows), 1)), shares.cumsum(axis=1)], axis=1) * 100
    where = Plot((0.0, 1.0), (0.0, 100.0), (480, 320), "Where samples stop under a confidence")
    for k in range(count):
        lower = [(float(t), float(v)) for t, v in zip(thresholds, cumulated[:, k], strict=True)]
        upper = [(float(t), float(v)) for t, v in zip(thresholds, cumulated[:, k + 1], strict=True)]
        where.area(upper, lower, colour(k, count), _name(profile, k))
    where.axes("confidence at which a sample stops", "samples, %", lambda t: f"{t:g}", lambda v: f"{v:g}")
    costs = np.array(stopping_costs(profile, range(1, count + 1)))
    points = [(float(costs[row].mean()), 100 * float(answers.correct[row, np.arange(len(row))].mean())) for row in rows]
    fixed = [(profile.cost(i).flops, 100 * float(answers.correct[i - 1].mean())) for i in range(1, count + 1)]
    values = [value for _, value in [*points, *fixed]]
    slack = 0.12 * (max(values) - min(values) or 1.0)
    widest = 1.05 * max(cost for cost, _ in [*points, *fixed])
    gives = Plot((0.0, widest), (min(values) - slack, max(values) + slack), (480, 320), "Accuracy over mean cost")
    gives.axes("mean multiply-adds", "accuracy, %", show_count, lambda v: f"{v:g}")
    gives.line(points, "stroke:var(--accent);stroke-width:2")
    for k, point in enumerate(fixed):
        words = f"{_name(profile, k)} alone: {point[1]:.2f}%"
        gives.dot(point, f"fill:{colour(k, count)};stroke:var(--card);stroke-width:1.5", words)
    return _section(
        "When samples stop",
        "A sample stops at the first exit that is confident enough. Left: where samples stop. Right: accuracy at the "
        "mean cost of such a rule (line; all critics on the way are paid), beside each exit alone (points). To choose "
        "a rule on validation data, use thresholds.",
        _legend([(_name(profile, k), colour(k, count)) for k in range(count)])
        + f'<div class="grid-cards"><div class="card">{where.svg()}</div><div class="card">{gives.svg()}</div></div>',
    )


def reliability(profile: Profile, answers: Answers) -> str:
    """Draw the accuracy of every exit at its confidence."""
    cards: list[str] = []
    for k, exit in enumerate(profile.exits):
        plot = Plot((0.0, 1.0), (0.0, 1.0), (270, 240), f"Reliability of {_name(profile, k)}")
        plot.axes("confidence", "accuracy", lambda v: f"{v:g}", lambda v: f"{v:g}")
        plot.line([(0.0, 0.0), (1.0, 1.0)], "stroke:var(--soft);stroke-dasharray:4 4")
        for confidence, accuracy, number in answers.reliability(k):
            words = f"{number} samples of mean confidence {confidence:.2f}: accuracy {accuracy:.2f}"
            radius = 3 + 8 * (number / len(answers.labels)) ** 0.5
            plot.dot((confidence, accuracy), "fill:var(--accent);fill-opacity:.75", words, radius)
        gap = exit.calibration
        words = "" if gap is None else f": error {gap.after:.1%}, {gap.before:.1%} before its temperature"
        cards.append(f'<div class="card"><h3>{_name(profile, k)}{words}</h3>{plot.svg()}</div>')
    return _section(
        "Calibration",
        "Accuracy at each confidence, after the temperature that was fitted on validation; on the dashed line a "
        "confidence is the chance to be right. The larger a point, the more samples.",
        f'<div class="grid-cards">{"".join(cards)}</div>',
    )


def confusion(profile: Profile, facts: Facts, answers: Answers) -> str:
    """Draw which classes each exit confuses, or list the pairs that it confuses most where there are many classes."""
    cards: list[str] = []
    names, count = facts.classes, len(facts.classes)
    for k in range(profile.num_groups):
        counts = answers.confusion(k, count)
        drawn = svg.heatmap(counts.tolist(), names, f"Confusion of {_name(profile, k)}")
        cards.append(
            f'<div class="card"><h3>{_name(profile, k)}</h3>'
            f"{drawn if count <= MOST_CLASSES else _most_confused(counts, names)}</div>"
        )
    how = (
        "Rows are the true classes, columns the answers; what is wrong is shaded four times as strong as what is right."
    )
    if count > MOST_CLASSES:
        how = "The pairs of classes that each exit confuses most."
    elif count <= 12:
        how += f" Classes: {', '.join(names)}."
    return _section("Confusion", how, f'<div class="grid-cards">{"".join(cards)}</div>')


def scatter(profile: Profile, facts: Facts, answers: Answers) -> str:
    """Draw what every exit answers over the true number, in the unit of the data."""
    step, cards = -(-len(answers.labels) // MOST_POINTS), list[str]()
    center = facts.centers[0] if facts.centers else 0.0
    truth, answered = answers.labels[::step] * facts.scale + center, answers.predicted[:, ::step] * facts.scale + center
    both = np.concatenate([truth, answered.ravel()])
    span = (float(both.min()), float(both.max()))
    for k in range(profile.num_groups):
        plot = Plot(span, span, (300, 280), f"Answers of {_name(profile, k)}")
        plot.axes("true", "answered", lambda v: f"{v:g}", lambda v: f"{v:g}")
        plot.line([(span[0], span[0]), (span[1], span[1])], "stroke:var(--soft);stroke-dasharray:4 4")
        for point in zip(truth.tolist(), answered[k].tolist(), strict=True):
            plot.dot(point, "fill:var(--accent);fill-opacity:.4", radius=2.5)
        cards.append(f'<div class="card"><h3>{_name(profile, k)}</h3>{plot.svg()}</div>')
    shown = f", {len(truth)} of the test samples" if step > 1 else ""
    return _section(
        "Answers", f"{facts.classes[0]}, answered over true{shown}.", f'<div class="grid-cards">{"".join(cards)}</div>'
    )


def _most_confused(counts: np.ndarray, names: Sequence[str]) -> str:
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
    pairs = [divmod(int(each), len(names)) for each in order if wrong.flat[each]]
    rows = "".join(
        f"<tr><td>{escape(names[i])}</td><td>{escape(names[j])}</td><td>{wrong[i, j]}</td></tr>" for i, j in pairs
    )
    return f"<table><tr><th>true</th><th>answered</th><th>samples</th></tr>{rows}</table>"


def _name(profile: Profile, k: int) -> str:
    return "main" if k == profile.num_groups - 1 else f"exit {k + 1}"


def _legend(entries: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<span><i style="background:{fill}"></i>{escape(words)}</span>' for words, fill in entries)
    return f'<div class="legend">{items}</div>'


def _section(title: str, note: str, body: str) -> str:
    return f'<section><h2>{escape(title)}</h2><p class="note">{escape(note)}</p>{body}</section>'
