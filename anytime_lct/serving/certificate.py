"""The certificate of a server and its key: checked before the port opens, and read again while it answers."""

from __future__ import annotations

import ssl
from pathlib import Path

from anytime_lct.errors import InputError

PARTIAL_CHAIN = 0x80000  # X509_V_FLAG_PARTIAL_CHAIN: the certificate itself is trusted, whoever signed it
OUT_OF_DATE = {9: "is not valid yet", 10: "has expired"}  # by the codes of OpenSSL's X509_V_ERR


class Certificate:
    """A chain of certificates and the key of the first, in two files of PEM; `read` must come before `context`.

    >>> Certificate(Path("server.crt"), Path("server.key")).read()  # doctest: +SKIP
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain, self._key = chain, key
        self._context: ssl.SSLContext | None = None

    def __getstate__(self) -> dict[str, object]:
        """Another process gets the names of the files, and reads them itself."""
        return {**self.__dict__, "_context": None}

    @property
    def context(self) -> ssl.SSLContext:
        """What new connections are encrypted with: the files as they were last read."""
        if self._context is None:
            self.read()
        assert self._context is not None
        return self._context

    def read(self) -> None:
        """Read both files; raises InputError where they cannot be served, and keeps what it has then."""
        for option, path in (("--tls-cert", self._chain), ("--tls-key", self._key)):
            try:
                path.read_bytes()
            except OSError as error:
                raise InputError(
                    f"Expected {option} to be a file of PEM, got '{path}' ({error.strerror}); check its path and its "
                    "permissions."
                ) from None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self._chain, self._key, password=self._no_password)
        except ssl.SSLError as error:
            raise self._unusable(error) from None
        self._check(context)
        self._context = context

    def _no_password(self) -> str:
        raise InputError(
            f"Expected --tls-key without a password, got '{self._key}' with one; decrypt it with 'openssl pkey'."
        )

    def _unusable(self, error: ssl.SSLError) -> InputError:
        if error.reason == "KEY_VALUES_MISMATCH":
            return InputError(
                f"Expected --tls-key to be the key of the certificate '{self._chain}', got that of another one in "
                f"'{self._key}'; give the pair that belongs together."
            )
        return InputError(
            f"Expected a certificate in '{self._chain}' and its key in '{self._key}', both as PEM, got something else "
            f"({error.reason or 'no PEM'}); check which file is which."
        )

    def _check(self, context: ssl.SSLContext) -> None:
        """Raise InputError where clients would refuse the certificate: by a handshake in memory."""
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname = False
        trusting.verify_flags |= PARTIAL_CHAIN
        trusting.load_verify_locations(self._chain)
        there, here = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = trusting.wrap_bio(here, there)
        server = context.wrap_bio(there, here, server_side=True)
        try:
            for side in (client, server, client):
                try:
                    side.do_handshake()
                except ssl.SSLWantReadError:
                    continue
        except ssl.SSLCertVerificationError as error:
            reason = OUT_OF_DATE.get(error.verify_code, f"is refused by clients ({error.verify_message})")
            raise InputError(
                f"Expected a certificate that clients accept, got '{self._chain}', which {reason}; renew it."
            ) from None
