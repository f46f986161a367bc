"""Fetch pictures from the web.

Somebody else chooses what an address holds and where it redirects to. So only machines on the public web are asked (see
`addresses`), size and time of an answer are limited, and nothing is sent but the request itself: no cookies, no names,
no passwords.
"""

import threading
import weakref
from typing import TYPE_CHECKING

from clipcls.errors import UsageError

if TYPE_CHECKING:
    from clipcls.inputs.web.fetching import Fetcher


class Web:
    """Fetches addresses, many at once, and reuses connections.

    Proxies from the environment aren't used: a proxy looks names up itself, and may connect to another address than the
    one that was checked to be public.
    """

    def __init__(self, timeout: float = 30.0, retries: int = 2, allow_private: bool = False) -> None:
        """Set the limits; nothing is loaded or opened before the first address.

        Args:
            timeout: seconds that one picture may take, with redirects and retries.
            retries: further attempts after a fault that may pass: a broken connection, HTTP 429, 500, 502, 503 and 504.
            allow_private: whether this machine and its own network may be asked, too.

        Raises:
            UsageError: `timeout` or `retries` is out of range.
        """
        if not timeout > 0:
            raise UsageError("The time that fetching an address may take must be above 0 seconds.")
        if retries < 0:
            raise UsageError("The number of further attempts at an address can't be negative.")
        self._timeout = timeout
        self._retries = retries
        self._allow_private = allow_private
        self._opening = threading.Lock()
        self._fetcher: Fetcher | None = None

    def __reduce__(self) -> tuple[type["Web"], tuple[float, int, bool]]:
        # another process opens connections of its own
        return Web, (self._timeout, self._retries, self._allow_private)

    def fetch(self, url: str, max_bytes: int) -> bytes:
        """Fetch an address's content; safe to call from many threads.

        Args:
            url: `http://…` or `https://…`.
            max_bytes: a larger content is refused, and not read further.

        Raises:
            ImageError: it can't or mustn't be fetched; the message doesn't name the address.
            UsageError: the certificates that SSL_CERT_FILE names can't be read.
        """
        return self._opened().fetch(url, max_bytes)

    def close(self) -> None:
        """Close idle connections, which otherwise happens with this object's end; it can be used again."""
        with self._opening:
            if self._fetcher is not None:
                self._fetcher.close()

    def _opened(self) -> "Fetcher":
        with self._opening:
            if self._fetcher is None:
                # imported here, so that a run without addresses doesn't load an HTTP client
                from clipcls.inputs.web.fetching import Fetcher

                self._fetcher = Fetcher(self._timeout, self._retries, self._allow_private)
                weakref.finalize(self, self._fetcher.close)
            return self._fetcher
