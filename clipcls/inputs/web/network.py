"""Connect to public addresses only, and no longer than a fetch may take: a network backend for httpcore2.

The pool passes a request's `timeout` on untouched, so here it is the moment in `time.monotonic()` by which the whole
fetch must end. A usual limit for each read could be stretched without end by a server that sends a byte now and then.
"""

import socket
import ssl
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import httpcore2

from clipcls.errors import ImageError, reason
from clipcls.inputs.web.addresses import IP, is_public, look_up


class PassingError(ImageError):
    """A fault that may be gone at the next attempt.

    Attributes:
        wait: seconds that the server asks to wait before that.
    """

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class Patience:
    """Time limits.

    Attributes:
        whole: seconds for a fetch.
        once: seconds for one step of it, such as the next bytes.
    """

    whole: float
    once: float

    def seconds(self, until: float | None) -> float:
        """Return how many seconds the next step may take.

        Raises:
            ImageError: no time is left.
        """
        left = self.once if until is None else until - time.monotonic()
        if left <= 0:
            raise ImageError(f"no complete answer within {self.whole:g} s")
        return min(left, self.once)

    def ended(self, until: float | None) -> ImageError:
        """Return the error for a step that timed out: final if the fetch's time is over, else passing."""
        try:
            self.seconds(until)
        except ImageError as exc:
            return exc
        return PassingError(f"no answer for {self.once:g} s")


class Network(httpcore2.NetworkBackend):
    """Opens connections; each `timeout` is a moment, see above.

    Args:
        allow_private: whether to connect to addresses that aren't public, too.
    """

    def __init__(self, patience: Patience, allow_private: bool) -> None:
        self._patience = patience
        self._allow_private = allow_private
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first of a host's public addresses that answers.

        Raises:
            PassingError: no address answers.
            ImageError: the host has no public address, or the time is over.
        """
        addresses = self._allowed(host, self._found(host, port, timeout))
        problem: ImageError | None = None
        for position, address in enumerate(addresses):
            # a share of the time each, so that a silent one leaves some to the others
            seconds = self._patience.seconds(timeout) / (len(addresses) - position)
            try:
                # not by the name: another look-up could lead elsewhere
                stream = self._sockets.connect_tcp(str(address), port, seconds, local_address, socket_options)
            except httpcore2.ConnectTimeout:
                problem = PassingError(f"no connection to {address} within {seconds:.3g} s")
            except httpcore2.ConnectError as exc:
                problem = PassingError(f"no connection to {address}: {_reason(exc)}")
            else:
                return _Stream(stream, self._patience)
        self._patience.seconds(timeout)
        raise problem or ImageError(f"the name {host} has no address")

    def _found(self, host: str, port: int, until: float | None) -> list[IP]:
        try:
            return look_up(host, port, self._patience.seconds(until))
        except TimeoutError as exc:
            raise self._patience.ended(until) from exc
        except OSError as exc:
            message = f"the name {host} can't be resolved: {reason(exc)}"
            raise (PassingError if exc.errno == socket.EAI_AGAIN else ImageError)(message) from exc

    def _allowed(self, host: str, addresses: Sequence[IP]) -> list[IP]:
        allowed = [address for address in addresses if self._allow_private or is_public(address)]
        if addresses and not allowed:
            what = str(addresses[0]) if host == str(addresses[0]) else f"{host}, which leads to {addresses[0]},"
            raise ImageError(f"{what} isn't on the public web; --allow-private-urls allows it")
        return allowed


class _Stream(httpcore2.NetworkStream):
    """A connection; each `timeout` is a moment, see above."""

    def __init__(self, stream: httpcore2.NetworkStream, patience: Patience) -> None:
        self._stream = stream
        self._patience = patience

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        seconds = self._patience.seconds(timeout)
        try:
            return self._stream.read(max_bytes, seconds)
        except httpcore2.ReadTimeout as exc:
            raise self._patience.ended(timeout) from exc
        except httpcore2.ReadError as exc:
            raise PassingError(f"the connection broke: {_reason(exc)}") from exc

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        seconds = self._patience.seconds(timeout)
        try:
            # a WriteError isn't translated: the pool then reads the answer that the server may have sent already
            self._stream.write(buffer, seconds)
        except httpcore2.WriteTimeout as exc:
            raise self._patience.ended(timeout) from exc

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        try:
            seconds = self._patience.seconds(timeout)
            return _Stream(self._stream.start_tls(ssl_context, server_hostname, seconds), self._patience)
        except httpcore2.ConnectTimeout as exc:
            raise self._patience.ended(timeout) from exc
        except httpcore2.ConnectError as exc:
            if isinstance(exc.__cause__, ssl.SSLCertVerificationError):
                message = f"its certificate can't be trusted: {exc.__cause__.verify_message}"
                raise ImageError(f"{message} (SSL_CERT_FILE names a file of others to trust)") from exc
            raise PassingError(f"no secure connection: {_reason(exc)}") from exc
        except ImageError:
            self.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _reason(exc: Exception) -> str:
    cause = exc.__cause__
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return cause.reason.replace("_", " ").lower()
    return (getattr(cause, "strerror", None) or str(exc) or type(exc).__name__).lower()
