"""What an address asks for, and of whom."""

import re
from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from clipcls.errors import ImageError

PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"[a-z0-9_.-]+|[0-9a-f:.]+")
# has a meaning of its own in an address, so it stays as it is
_KEPT = "%/?:@!$&'()*+,;=~[]"


@dataclass(frozen=True, slots=True)
class Target:
    """An address taken apart.

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
        """The host, with its port unless that goes without saying."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"

    def redirected(self, location: str) -> "Target":
        """The address that an answer refers to.

        Raises:
            ImageError: as for `parse`, or it would give up encryption.
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
    """Take an address apart.

    Characters that an address can't hold are encoded, in the host by IDNA, elsewhere with `%`; bytes that aren't
    UTF-8 (surrogates, see `os.fsdecode`) as they are.

    Raises:
        ImageError: it isn't an address of http or https, or holds a user's name; the message doesn't quote it.
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
    """A host as it is asked for: in lower case, by IDNA, without the dot that says that a name is whole."""
    try:
        host = name.encode("idna").decode("ascii").lower().removesuffix(".")
    except UnicodeError as exc:
        raise ImageError("not an address: its host isn't a possible name") from exc
    if not _HOST.fullmatch(host):
        raise ImageError("not an address: its host isn't a possible name")
    return host
