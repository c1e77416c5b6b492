"""How a server is reached, who may ask it, and who may change what it serves."""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass, field

from anytime_lct.errors import InputError
from anytime_lct.serving.certificate import Certificate
from anytime_lct.serving.keys import Keys

KEY_VARIABLE = "ANYTIME_LCT_ADMIN_KEY"
ANY = "*"
# What may be open to clients without a key: by its name, the paths.
KEYLESS = {"health": ("/v2/health/live", "/v2/health/ready"), "metrics": ("/metrics",)}


@dataclass(frozen=True)
class Access:
    """How a server is reached, what a request must name, and who may load and unload models.

    `hosts` are names that the header Host may hold, apart from addresses and names without a dot, which no page of
    another site has; "*" is any. `origins` are the sites whose pages may ask, as "https://lct.example", or "*". Models
    are loaded and unloaded on request for everybody with `allow_admin`, else from this machine alone, with `key`.
    `keys` are those of clients, for all but the page and the paths under `keyless`. `certificate` is that of TLS.
    `root_path` is the path below which a proxy shows the server, as "/lct". `log` writes a line for every request.

    >>> Access(hosts=("lct.example",)).allows_host("lct.example:8000")
    True
    """

    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    allow_admin: bool = False
    key: str | None = field(default=None, repr=False)
    log: bool = False
    keys: Keys | None = None
    keyless: tuple[str, ...] = ()
    certificate: Certificate | None = None
    root_path: str = ""

    @property
    def has_admin(self) -> bool:
        """Whether anybody may load and unload models on request."""
        return self.allow_admin or self.key is not None

    def read_files(self) -> None:
        """Read the certificate and the keys again; raises InputError, and keeps what cannot be read as it is."""
        errors: list[InputError] = []
        for file in (self.certificate, self.keys):
            try:
                if file is not None:
                    file.read()
            except InputError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def allows_host(self, host: str) -> bool:
        """Return whether a request that names this host is answered.

        A page of another site reaches a server of this machine where the site's own name suddenly means an address
        here (DNS rebinding). Its requests name that site.
        """
        name = _without_port(host).rstrip(".").lower()
        return ANY in self.hosts or name in self.hosts or "." not in name or is_address(name)

    def allows_origin(self, origin: str, host: str) -> bool:
        """Return whether a page of `origin` may ask a server that the request calls `host`: its own page may."""
        return ANY in self.origins or origin in self.origins or origin.partition("://")[2].lower() == host.lower()


CLOSED = Access()


@functools.lru_cache(maxsize=256)
def is_address(name: str) -> bool:
    """Return whether a host is an address and no name.

    >>> is_address("127.0.0.1"), is_address("[::1]"), is_address("127.0.0.1.evil.example")
    (True, True, False)
    """
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def is_loopback(name: str) -> bool:
    """Return whether an address is one of this machine for itself."""
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _without_port(host: str) -> str:
    """Return a host without its port.

    >>> _without_port("[::1]:80"), _without_port("a.example:80"), _without_port("::1")
    ('[::1]', 'a.example', '::1')
    """
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdigit() and (":" not in name or name.endswith("]")) else host
