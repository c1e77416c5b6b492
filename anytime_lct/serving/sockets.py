"""The socket that clients connect to: a port of this machine, or a file."""

from __future__ import annotations

import socket
from pathlib import Path

from anytime_lct.errors import InputError

UNIX = getattr(socket, "AF_UNIX", None)  # which Windows lacks


def bind(host: str, port: int) -> socket.socket:
    """Return the socket that clients will connect to, which does not listen yet; port 0 takes a free port.

    Raises InputError.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError, OverflowError) as error:
        raise no_address(f"{host}:{port}", error) from None
    listener.setblocking(False)
    return listener


def bind_file(path: Path) -> socket.socket:
    """Return a Unix socket at a path, where a server that has ended may have left one.

    Who may connect depends on the mode of its file, which is that of the process's umask. Raises InputError.
    """
    if UNIX is None:
        raise InputError("Expected --host and --port on this system, got --unix-socket, which it does not have.")
    try:
        if path.is_socket() and not _listens(path):
            path.unlink()
        listener = socket.socket(UNIX, socket.SOCK_STREAM)
        listener.bind(str(path))
    except OSError as error:
        raise InputError(
            f"Expected a path of a new socket, got '{path}' ({error.strerror or error}); choose another --unix-socket."
        ) from None
    listener.setblocking(False)
    return listener


def address(listener: socket.socket, scheme: str = "http") -> str:
    """Return the URL of a socket, or the path of a Unix socket.

    >>> address(bind("127.0.0.1", 8000))  # doctest: +SKIP
    'http://127.0.0.1:8000'
    """
    if listener.family == UNIX:
        return f"unix:{listener.getsockname()}"
    host, port = listener.getsockname()[:2]
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def no_address(text: str, error: Exception) -> InputError:
    """Return the error of an address at which no server can listen."""
    return InputError(
        f"Expected an address to listen at, got {text} ({getattr(error, 'strerror', None) or error}); "
        "choose another --host or --port."
    )


def _listens(path: Path) -> bool:
    """Return whether a server listens at a Unix socket."""
    with socket.socket(UNIX or 0, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        return True
