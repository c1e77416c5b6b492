"""`anytime-lct predict`: answer files by a bundle, within a budget."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anytime_lct.cli.screen import print_json
from anytime_lct.cli.select import FLOPS, LATENCY, PARAMS, read_budget
from anytime_lct.cli.serve import PROVIDER

if TYPE_CHECKING:
    from rich.progress import Progress

    from anytime_lct.cli.answers import Row
    from anytime_lct.exits.budget import Ask, Budget
    from anytime_lct.runtime.answer import Answer
    from anytime_lct.runtime.inputs import Portion
    from anytime_lct.runtime.session import AnytimeSession

    # An input's name for the user, and what reads it.
    Source = tuple[str, Callable[[], Iterator[Portion]]]


INPUTS = "Image files, .npy arrays or text files, folders of them, patterns such as 'photos/**/*.jpg', or - for stdin."
TEXT = "A text, instead of files: it gets a class or, by a language model, its next character."
TIMEOUT = "Answer by the deepest exit that this machine reaches within this time, such as 5ms; needs `calibrate` first."
CONFIDENCE = "Let every sample stop at the first exit with at least this confidence, from 0 to 1."
MEAN = "Let samples stop by the bundle's rule for this mean of multiply-adds, such as 20M or 70%; see `thresholds`."
MEASURE = "With --min-confidence: max-probability, the default, margin or entropy."
EXIT = "Go no deeper than this exit, a number or main."
FIXED = "Answer by this exit, a number or main."
FORMAT = "How answers are printed: table, or csv or jsonl (one JSON object a line) as soon as they are there."
GENERATE = "Write so many characters that follow --prompt, each within the budget."
PROMPT = "The text that --generate continues; default: a line feed."
TEMPERATURE = "With --generate: 1, the default, draws as the network predicts, less is safer, 0 takes the likeliest."
SEED = "With --generate: equal seeds give equal texts; default: 0."
CONTEXT = "With --generate: the network reads no more than this many characters back; default: all."
STREAM = "Show the answer of every exit on the way, up to the one that the budget chooses."


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder.")],
    inputs: Annotated[list[str] | None, typer.Argument(help=INPUTS)] = None,
    text: Annotated[
        str | None, typer.Option(help="A text, instead of files, that gets a class, or is continued by a character.")
    ] = None,
    budget_flops: Annotated[str | None, typer.Option(help=FLOPS)] = None,
    budget_params: Annotated[str | None, typer.Option(help=PARAMS)] = None,
    budget_latency: Annotated[str | None, typer.Option(help=LATENCY)] = None,
    exit: Annotated[str | None, typer.Option("--exit", metavar="N|main", help=EXIT)] = None,
    fixed: Annotated[str | None, typer.Option(metavar="N|main", help=FIXED)] = None,
    stream: Annotated[bool, typer.Option("--stream", help=STREAM)] = False,
    top: Annotated[int | None, typer.Option(min=1, help="Number of classes to show; default: 1, for text 5.")] = None,
    timeout: Annotated[str | None, typer.Option(help=TIMEOUT)] = None,
    min_confidence: Annotated[float | None, typer.Option(help=CONFIDENCE)] = None,
    mean_flops: Annotated[str | None, typer.Option(help=MEAN)] = None,
    measure: Annotated[str | None, typer.Option(metavar="MEASURE", help=MEASURE)] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads inside a request; default: as calibrated, else 1.")
    ] = None,
    provider: Annotated[str, typer.Option(metavar="NAME,..", help=PROVIDER)] = "cpu",
    generate: Annotated[int | None, typer.Option(metavar="CHARACTERS", help=GENERATE)] = None,
    prompt: Annotated[str | None, typer.Option(help=PROMPT)] = None,
    temperature: Annotated[float | None, typer.Option(help=TEMPERATURE)] = None,
    seed: Annotated[int | None, typer.Option(help=SEED)] = None,
    context: Annotated[int | None, typer.Option(help=CONTEXT)] = None,
    output: Annotated[str | None, typer.Option("--format", metavar="FORMAT", help=FORMAT)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Answer files by a bundle: the class or the numbers of every image or text, or the next characters of a text.

    Every answer comes from the most accurate exit that the budget allows. Files are read one after another; an array
    of many samples is answered 16 at a time. Inputs that cannot be read are named on stderr, the others are answered,
    and the exit code is then 2. With --generate, a text network writes on from --prompt by itself.

    Example: anytime-lct predict bundle photos --budget-flops 70% --format csv
    """
    import json
    import sys

    from anytime_lct.cli import answers
    from anytime_lct.errors import BudgetError, InputError
    from anytime_lct.runtime.session import AnytimeSession

    if as_json and output:
        raise InputError(f"Expected --json or --format {output}, got both; leave one out.")
    if output not in (None, *answers.FORMATS):
        raise InputError(f"Expected --format {', '.join(answers.FORMATS)}, got '{output}'; name one of them.")
    session = AnytimeSession(bundle, threads, provider=provider.split(","))
    main = session.profile.num_groups
    budget = read_budget(budget_flops, budget_params, budget_latency, exit_number(exit, main))
    ask = read_ask(budget, timeout, min_confidence, measure, mean_flops)
    if fixed is not None:
        ask = fixed_ask(ask, exit_number(fixed, main))
    if stream and (ask.timeout, ask.min_confidence, ask.mean_flops) != (None, None, None):
        raise BudgetError(
            "Expected --stream alone, which shows every exit; leave --timeout, --min-confidence and --mean-flops out."
        )
    session.plan(ask)  # raises before any input is read where this bundle cannot answer
    if timeout is not None:
        session.warm()  # loading graphs is not part of the request
    drawing = {"temperature": temperature, "seed": seed, "context": context}
    if generate is not None:
        others = {"inputs": inputs, "--text": text, "--stream": stream, "--top": top}
        if extra := [name for name, value in others.items() if value]:
            raise InputError(f"Expected --prompt alone with --generate, got {extra[0]}; leave it out.")
        write_text(session, (prompt, generate), ask, drawing, "json" if as_json else output)
        return
    if extra := [name for name, value in {"prompt": prompt, **drawing}.items() if value is not None]:
        raise InputError(f"Expected --generate with --{extra[0]}, got none; add --generate 200, or leave it out.")
    if not inputs and text is None:
        raise InputError("Expected an input, got none; name files or folders, or give --text for a network on text.")
    num_classes = top_of(session, top)

    def reply(x: Any) -> Iterator[Answer]:
        return stream_to(session, x, session.plan(ask).deepest) if stream else iter([session.run(x, ask)])

    sources = sources_of(inputs or [], text, session)
    is_shown = as_json or output in (None, "table") or not sys.stdout.isatty()
    failed: list[dict[str, str]] = []
    with answers.bar_of(len(sources), shown=is_shown and not stream) as bar:
        rows = answer_all(session, sources, reply, num_classes, failed, bar)
        if as_json:
            print_json(json.dumps({"bundle": str(bundle), "answers": list(rows), "failed": failed}))
        elif output == "csv":
            answers.write_csv(rows)
        elif output == "jsonl":
            answers.write_jsonl(rows)
        elif stream:
            answers.write_lines(rows)
        else:
            answers.write_table(rows, bar)
    if failed:
        if len(sources) > 1:
            typer.echo(f"{len(failed)} of {len(sources)} inputs have no answer.", err=True)
        raise typer.Exit(InputError.exit_code)


def top_of(session: AnytimeSession, top: int | None) -> int:
    """Return how many classes to show; raises InputError where the network has none."""
    from anytime_lct.errors import InputError

    row = session.manifest.row
    if row.is_numbers and top is not None:
        raise InputError("Expected --top with a network that classifies, got one of numbers; leave it out.")
    return top or row.top


def write_text(
    session: AnytimeSession, start: tuple[str | None, int], ask: Ask, drawing: dict[str, Any], output: str | None
) -> None:
    """Generate a text from its start, a prompt and a number of characters, and print it as `output` says."""
    from anytime_lct.cli import generation
    from anytime_lct.runtime.generation import default_prompt, generate

    prompt, length = start
    options = {key: value for key, value in drawing.items() if value is not None}
    characters = generate(session, default_prompt(session) if prompt is None else prompt, length, ask, **options)
    if output == "json":
        generation.write_json(str(session.bundle.path), prompt or "", characters)
    elif output in ("csv", "jsonl"):
        generation.write_rows(characters, output)
    else:
        generation.write_text(prompt or "", characters)


def sources_of(names: list[str], text: str | None, session: AnytimeSession) -> list[Source]:
    """Return the files that the names stand for, each with what reads it, and the text; the names may be none."""
    from anytime_lct.errors import InputError
    from anytime_lct.runtime.inputs import Portion, files_of, read
    from anytime_lct.runtime.preprocess import from_text

    def refuse(error: InputError) -> Iterator[Portion]:
        raise error

    manifest = session.manifest
    sources: list[Source] = []
    for name in names:
        try:
            sources += [(printable(file), partial(read, file, manifest)) for file in files_of(name, manifest)]
        except InputError as error:
            sources.append((printable(name), partial(refuse, error)))
    if text is not None:
        sources.append(("--text", lambda: iter([Portion(from_text(text, manifest.preprocessing), 0, 1)])))
    return sources


def printable(name: str) -> str:
    """Return a file's name with the bytes that are not UTF-8 written as \\xe9."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def answer_all(
    session: AnytimeSession,
    sources: list[Source],
    reply: Callable[[Any], Iterator[Answer]],
    top: int,
    failed: list[dict[str, str]],
    bar: Progress,
) -> Iterator[Row]:
    """Read and answer one source after another; those without an answer are named on stderr and added to `failed`."""
    from rich.text import Text

    from anytime_lct.cli.answers import rows_of
    from anytime_lct.errors import InputError

    for name, read in sources:
        try:
            for portion in read():
                for answer in reply(portion.x):
                    yield from rows_of(session.manifest, name, portion, answer, top)
        except InputError as error:
            failed.append({"input": name, "error": str(error)})
            bar.console.print(Text(str(error), style="red"), soft_wrap=True)
        bar.advance(bar.task_ids[0])


def exit_number(name: str | None, main: int) -> int | None:
    """Return the number of an exit that is named by it or as main; raises BudgetError."""
    from anytime_lct.errors import BudgetError

    if name is None or name == "main":
        return None if name is None else main
    if not name.removeprefix("-").isdecimal():
        raise BudgetError(f"Expected an exit from 1 to {main}, or main, got '{name}'; name one of them.")
    return int(name)


def read_ask(
    budget: Budget, timeout: str | None, min_confidence: float | None, measure: str | None, mean_flops: str | None
) -> Ask:
    """Return the Ask of every input, from the options; raises BudgetError."""
    from anytime_lct.errors import BudgetError
    from anytime_lct.exits.budget import DEFAULT_ASK, Ask, parse_flops, parse_seconds
    from anytime_lct.exits.thresholds import MEASURES

    if measure not in (None, *MEASURES):
        raise BudgetError(f"Expected --measure {', '.join(MEASURES)}, got '{measure}'; name one of them.")
    if measure is not None and min_confidence is None:
        raise BudgetError("Expected --min-confidence with --measure, got it alone; add that, or leave it out.")
    return Ask(
        budget,
        timeout=None if timeout is None else parse_seconds(timeout),
        min_confidence=min_confidence,
        measure=measure or DEFAULT_ASK.measure,
        mean_flops=None if mean_flops is None else parse_flops(mean_flops),
    )


def fixed_ask(ask: Ask, exit: int | None) -> Ask:
    """Return the Ask for one exit; raises BudgetError where `ask` has bounds of its own."""
    from anytime_lct.errors import BudgetError
    from anytime_lct.exits.budget import DEFAULT_ASK, Ask, Budget

    if ask != DEFAULT_ASK:
        raise BudgetError("Expected --fixed alone, which names the exit; leave budgets, timeouts and thresholds out.")
    return Ask(Budget(exit=exit), mode="fixed")


def stream_to(session: AnytimeSession, x: Any, last: int) -> Iterator[Answer]:
    """Yield the answers of every exit on the way to `last`."""
    for answer in session.stream(x):
        yield answer
        if answer.exit == last:
            return
