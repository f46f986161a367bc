"""Parse web addresses and redirects."""

import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from clipcls.errors import ImageError

PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"[a-z0-9_.-]+|[0-9a-f:.]+")
# characters with a meaning in an address, which aren't encoded
_KEPT = "%/?:@!$&'()*+,;=~[]"


@dataclass(frozen=True, slots=True)
class Target:
    """The parts of a web address.

    Attributes:
        scheme: `http` or `https`.
        host: a name in ASCII or an address without brackets, in lower case.
        path: the path and the query, in ASCII.
    """

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The host, with its port unless it is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def redirected(self, location: str) -> "Target":
        """Return the address that a redirect leads to.

        Raises:
            ImageError: as for `parse`, or it leads from https to http.
        """
        try:
            target = parse(urljoin(f"{self.scheme}://{self.authority}{self.path}", location.strip()))
        except ImageError as exc:
            raise ImageError(f"redirected to what can't be fetched: {exc}") from exc
        except ValueError as exc:  # urljoin takes the address apart as well
            raise ImageError("redirected to what isn't an address") from exc
        if self.scheme == "https" and target.scheme == "http":
            raise ImageError("redirected from https to http, where anyone on the way could change the picture")
        return target


def parse(url: str) -> Target:
    """Parse a web address.

    Characters that an address can't hold are encoded, in the host by IDNA, elsewhere with `%`; surrogates (see
    `os.fsdecode`) as the bytes they stand for.

    Raises:
        ImageError: it isn't an http or https address, or holds a user's name; the message doesn't quote it.
    """
    if re.search(r"[\0-\x1f\x7f]", url):  # urlsplit would drop some of them
        raise ImageError("not an address: it holds a control character")
    try:
        parts = urlsplit(url)
        name, port = parts.hostname or "", parts.port
    except ValueError as exc:
        raise ImageError("not an address: its host or port isn't one") from exc
    if parts.scheme not in PORTS:
        raise ImageError("not an address that begins with http:// or https://")
    if "@" in parts.netloc:
        raise ImageError("an address with a user's name or password, which are never sent")
    path = quote(parts.path or "/", _KEPT, errors="surrogateescape")
    query = "?" + quote(parts.query, _KEPT, errors="surrogateescape") if parts.query else ""
    return Target(parts.scheme, _host(name), PORTS[parts.scheme] if port is None else port, path + query)


def _host(name: str) -> str:
    """Return a host in lower case, encoded by IDNA, without a full name's final dot."""
    try:
        host = name.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError as exc:
        raise ImageError("not an address: its host isn't a possible name") from exc
    if not _HOST.fullmatch(host):
        raise ImageError("not an address: its host isn't a possible name")
    return host
