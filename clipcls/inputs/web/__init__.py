"""Pictures fetched from the web.

What is behind an address is somebody else's choice, and so is where it redirects to. So nothing is asked of machines
that the public web can't reach (see `addresses`), no answer may be larger or take longer than was said,
and nothing is sent but the request itself: no cookies, no names, no passwords.
"""

import threading
import weakref
from typing import TYPE_CHECKING

from clipcls.errors import UsageError

if TYPE_CHECKING:
    from clipcls.inputs.web.fetching import Fetcher


class Web:
    """Fetches addresses, many at once; connections are kept for those that follow.

    Proxies that the environment names aren't used: a proxy would connect to whatever a name means to it, and not to
    the address that was found to be public.
    """

    def __init__(self, timeout: float = 30.0, retries: int = 2, allow_private: bool = False) -> None:
        """Nothing is loaded or opened before the first address.

        Args:
            timeout: seconds that one picture may take, with all its redirects and further attempts.
            retries: further attempts after what may pass: a broken connection, HTTP 429, 500, 502, 503 and 504.
            allow_private: whether this machine itself and those of its own network may be asked as well.

        Raises:
            UsageError: the time or the attempts are out of range.
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
        """The content of an address; safe to call from many threads.

        Args:
            url: `http://…` or `https://…`.
            max_bytes: a larger content is refused, and no more of it is read.

        Raises:
            ImageError: it can't be had, or mustn't be asked for; the message doesn't name the address.
            UsageError: the certificates that SSL_CERT_FILE names can't be read.
        """
        return self._opened().fetch(url, max_bytes)

    def close(self) -> None:
        """End the connections that are kept, which otherwise end with this object; it can be used again."""
        with self._opening:
            if self._fetcher is not None:
                self._fetcher.close()

    def _opened(self) -> "Fetcher":
        with self._opening:
            if self._fetcher is None:
                # here, so that a run without addresses doesn't load an HTTP client
                from clipcls.inputs.web.fetching import Fetcher

                self._fetcher = Fetcher(self._timeout, self._retries, self._allow_private)
                weakref.finalize(self, self._fetcher.close)
            return self._fetcher
