"""`anytime-lct serve`: answer requests over HTTP, each by the best exit that its budget and deadline allow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from anytime_lct.cli.screen import print_json

if TYPE_CHECKING:
    from anytime_lct.exits.budget import Ask
    from anytime_lct.serving.certificate import Certificate
    from anytime_lct.serving.keys import Keys


CORES = "Threads that compute answers, divided among workers; default: all cores. Very short requests need none."
HOST = "Name by which clients may call the server, beside addresses and names without a dot; repeatable."
ORIGIN = "CORS: site whose pages may ask, e.g. https://lct.example; repeatable."
ADMIN = "Let every client load and unload models; default: those on this machine with the key ANYTIME_LCT_ADMIN_KEY."
DEADLINE = "Deadline of requests without one, counted from their arrival, e.g. 20ms; default: none."
CERT = "Speak TLS: the server's certificate and those between it and its authority, PEM. SIGHUP reads it again."
KEYS = "Ask clients for a key of this file, one a line, as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'."
KEYLESS = "Answered without a key: health or metrics; repeatable."
ROOT = "Path below which a proxy shows the server, e.g. /lct."
PROVIDER = "Where answers are computed: cpu, cuda, tensorrt, coreml or openvino, or several: the first that is there."
BATCH = "Let requests of one model and shape that wait join into batches of up to so many samples, where that pays."
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
    provider: Annotated[str, typer.Option(metavar="NAME,..", help=PROVIDER)] = "cpu",
    batch: Annotated[int, typer.Option(min=1, max=1024, metavar="N", help=BATCH)] = 1,
    deadline: Annotated[str | None, typer.Option(help=DEADLINE)] = None,
    fixed: Annotated[int | None, typer.Option(min=1, metavar="EXIT", help=FIXED)] = None,
    max_body: Annotated[str, typer.Option(help="Largest request in bytes, compressed or not, e.g. 64M.")] = "64M",
    allow_host: Annotated[list[str] | None, typer.Option(metavar="NAME", help=HOST)] = None,
    cors_origin: Annotated[list[str] | None, typer.Option(metavar="ORIGIN", help=ORIGIN)] = None,
    tls_cert: Annotated[Path | None, typer.Option(metavar="FILE", help=CERT)] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The key of --tls-cert, PEM.")] = None,
    api_key_file: Annotated[Path | None, typer.Option(metavar="FILE", help=KEYS)] = None,
    keyless: Annotated[list[str] | None, typer.Option(metavar="WHAT", help=KEYLESS)] = None,
    unix_socket: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Listen on a Unix socket instead of a port.")
    ] = None,
    root_path: Annotated[str, typer.Option(metavar="PATH", help=ROOT)] = "",
    allow_admin: Annotated[bool, typer.Option("--allow-admin", help=ADMIN)] = False,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log every request to stderr.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the address as one JSON object.")] = False,
) -> None:
    """Answer requests over HTTP by the Open Inference Protocol V2, until Ctrl-C or SIGTERM.

    Each is answered by the best exit that its budget and deadline allow; under load answers come from shallower exits
    rather than late. The page at / shows the models and lets you try them. SIGHUP reloads the bundles, the certificate
    and the keys.

    Example: anytime-lct serve bundles/digits --port 8000 --deadline 20ms
    """
    from anytime_lct.serving.signals import held_to_the_end

    with held_to_the_end():  # before anything that takes time is imported
        import json
        import os

        from anytime_lct.exits.budget import parse_count
        from anytime_lct.serving.access import KEY_VARIABLE, Access
        from anytime_lct.serving.limits import Limits
        from anytime_lct.serving.server import Settings
        from anytime_lct.serving.server import serve as run_server
        from anytime_lct.serving.sockets import address, bind, bind_file

        body = round(parse_count(max_body))
        limits = Limits(body=body, json=min(body, Limits.json), in_flight=max(Limits.in_flight, 4 * body))
        access = Access(
            hosts=(host.lower(), *map(str.lower, allow_host or ())),
            origins=tuple(cors_origin or ()),
            allow_admin=allow_admin,
            key=os.environ.get(KEY_VARIABLE) or None,
            log=access_log,
            keys=read_keys(api_key_file),
            keyless=check_keyless(keyless or []),
            certificate=read_certificate(tls_cert, tls_key),
            root_path=check_root(root_path),
        )
        threads, default = threads_each(cores, workers), read_default(deadline, fixed)
        settings = Settings(bundle, threads, limits, default, access, provider.split(","), batch)
        listener = bind(host, port) if unix_socket is None else bind_file(unix_socket)

        def started() -> None:
            url = address(listener, "http" if access.certificate is None else "https")
            if as_json:
                print_json(json.dumps({"address": url}))
            else:
                print(f"Serving {bundle} at {url}, Ctrl-C ends.", flush=True)

        try:
            if workers == 1:
                run_server(listener, settings, started)
            else:
                from anytime_lct.serving.workers import Workers

                Workers(listener, settings, workers).run(started)
        finally:
            if unix_socket is not None:
                unix_socket.unlink(missing_ok=True)


def read_keys(path: Path | None) -> Keys | None:
    """Return the keys of clients, and warn where others can read them."""
    from anytime_lct.serving.keys import Keys
    from anytime_lct.serving.logs import warn_if_open

    if path is None:
        return None
    keys = Keys(path)
    warn_if_open(path)
    return keys


def read_certificate(chain: Path | None, key: Path | None) -> Certificate | None:
    """Return the certificate of the server, and warn where others can read its key."""
    from anytime_lct.errors import InputError
    from anytime_lct.serving.certificate import Certificate
    from anytime_lct.serving.logs import warn_if_open

    if chain is None and key is None:
        return None
    if chain is None or key is None:
        missing = "--tls-cert" if chain is None else "--tls-key"
        raise InputError(f"Expected --tls-cert and --tls-key together, got one of them; give {missing} too.")
    certificate = Certificate(chain, key)
    certificate.read()
    warn_if_open(key)
    return certificate


def check_keyless(names: list[str]) -> tuple[str, ...]:
    """Return the names of what is answered without a key."""
    from anytime_lct.errors import InputError
    from anytime_lct.serving.access import KEYLESS

    for name in names:
        if name not in KEYLESS:
            raise InputError(f"Expected --keyless {' or '.join(KEYLESS)}, got '{name}'; give one of them.")
    return tuple(names)


def check_root(path: str) -> str:
    """Return a root path without a slash at its end."""
    import re

    from anytime_lct.errors import InputError

    if not re.fullmatch(r"(/[\w.~-]+)*/?", path, re.ASCII):
        raise InputError(f"Expected --root-path like /lct, got '{path}'; use letters, digits, and slashes between.")
    return path.rstrip("/")


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
