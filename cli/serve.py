"""`anytime-lct serve`: answer requests over HTTP, each by the best exit that its budget and deadline allow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from anytime_lct.exits.budget import Ask


CORES = "Threads that compute answers, divided among workers; default: all cores. Very short requests need none."
HOST = "Name by which clients may call the server, beside addresses and names without a dot; repeatable."
ORIGIN = "CORS: site whose pages may ask, e.g. https://lct.example; repeatable."
ADMIN = "Let every client load and unload models; default: those on this machine with the key ANYTIME_LCT_ADMIN_KEY."
DEADLINE = "Deadline of requests without one, counted from their arrival, e.g. 20ms; default: none."
FIXED = "Answer by this exit, whatever the load, unless a request's parameters differ; as a baseline."


def serve(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, or a folder of bundles.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every network.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    workers: Annotated[int, typer.Option(min=1, help="Processes that share the port.")] = 1,
    cores: Annotated[
        int | None,
        typer.Option(min=1, help=CORES),
    ] = None,
    deadline: Annotated[str | None, typer.Option(help=DEADLINE)] = None,
    fixed: Annotated[int | None, typer.Option(min=1, metavar="EXIT", help=FIXED)] = None,
    max_body: Annotated[str, typer.Option(help="Largest request in bytes, compressed or not, e.g. 64M.")] = "64M",
    allow_host: Annotated[list[str] | None, typer.Option(metavar="NAME", help=HOST)] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(metavar="ORIGIN", help=ORIGIN)] = None,
    allow_admin: Annotated[bool, typer.Option("--allow-admin", help=ADMIN)] = False,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every request to stderr.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as one JSON object.")] = False,
) -> None:
    """Answer requests over HTTP by the Open Inference Protocol V2, until Ctrl-C or SIGTERM.

    Each is answered by the best exit that its budget and deadline allow; under load answers come from shallower exits
    rather than late. The page at / shows the models and lets you try them. SIGHUP reloads the bundles.

    Example: anytime-lct serve bundles/digits --port 8000 --deadline 20ms
    """
    from anytime_lct.serving.signals import held_to_the_end

    with held_to_the_end():  # before anything that takes time is imported
        import json
        import os

        from anytime_lct.exits.budget import parse_count
        from anytime_lct.serving.access import KEY_VARIABLE, Access
        from anytime_lct.serving.limits import Limits
        from anytime_lct.serving.server import Settings, address, bind
        from anytime_lct.serving.server import serve as run_server

        body = round(parse_count(max_body))
        limits = Limits(body=body, json=min(body, Limits.json), in_flight=max(Limits.in_flight, 4 * body))
        names = (host.lower(), *map(str.lower, allow_host or ()))
        access = Access(names, tuple(cors_origin or ()), allow_admin, os.environ.get(KEY_VARIABLE) or None, access_log)
        settings = Settings(bundle, threads_each(cores, workers), limits, read_default(deadline, fixed), access)
        listener = bind(host, port)

        def started() -> None:
            url = address(listener)
            print(json.dumps({"address": url}) if as_json else f"Serving {bundle} at {url}, Ctrl-C ends.", flush=True)

        if workers == 1:
            run_server(listener, settings, started)
        else:
            from anytime_lct.serving.workers import Workers

            Workers(listener, settings, workers).run(started)


def threads_each(cores: int | None, workers: int) -> int:
    """Return the number of threads of each worker."""
    import os

    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, (cores or available) // workers)


def read_default(deadline: str | None, fixed: int | None) -> Ask:
    """Return the Ask of requests that say nothing, from the options."""
    from anytime_lct.exits.budget import Ask, Budget, parse_seconds

    timeout = None if deadline is None else parse_seconds(deadline)
    return Ask(Budget(exit=fixed), timeout=timeout, mode="anytime" if fixed is None else "fixed")
