"""The keys of a server's clients: one a line in a file, of which only digests stay in memory."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path

from anytime_lct.errors import InputError

PLAIN = re.compile(r"[!-~]{16,512}")
NEW = "python -c 'import secrets; print(secrets.token_urlsafe(32))'"


class Keys:
    """The keys in a file; lines that are empty or start with # are none.

    >>> Keys(Path("clients.keys")).allow(b"uN0kMn7o7vTt3S8hQm4a")  # doctest: +SKIP
    True
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.read()

    def read(self) -> None:
        """Read the file; raises InputError where it holds no keys, and keeps what it has then."""
        try:
            lines = self._path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no text"
            raise InputError(
                f"Expected --api-key-file to be a file with a key on each line, got '{self._path}' ({reason}); "
                "check its path and its permissions."
            ) from None
        keys = {k: line.strip() for k, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")}
        for number, key in keys.items():
            if not PLAIN.fullmatch(key):
                raise InputError(
                    f"Expected keys of 16 to 512 letters, digits and signs, got another line {number} in "
                    f"'{self._path}'; make one with: {NEW}"
                )
        if not keys:
            raise InputError(f"Expected a key on each line of '{self._path}', got none; make one with: {NEW}")
        self._digests = [_digest(key.encode()) for key in keys.values()]

    def allow(self, key: bytes) -> bool:
        """Return whether a client with this key may ask, in a time that does not depend on how much of it is right."""
        digest = _digest(key)
        return sum(hmac.compare_digest(digest, each) for each in self._digests) > 0


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
