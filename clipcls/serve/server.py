"""Run the server: listen, load the model, answer until a signal comes, and finish what was begun."""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from clipcls.errors import UsageError, reason
from clipcls.serve.service import Service

#: The time that requests have to end in, once the server is told to stop.
STOP_SECONDS = 20
#: The time in which a request's head has to come.
HEAD_SECONDS = 30.0
_MOST_HEAD_BYTES = 2**16
# at once from one client: in chunks of a byte they keep the loop busy for a tenth of a second
_MOST_READ_BYTES = 2**14
_BACKLOG = 2048
_MOST_CONNECTIONS = 2**16


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        UsageError: the address can't be had.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except (OSError, OverflowError, UnicodeError) as exc:
        raise UsageError(f"{host}:{port} can't be listened at: {reason(exc)}. Give another --host or --port.") from exc
    return listener


def serve(app: ASGIApp, service: Service, listener: socket.socket, announce: Callable[[], None]) -> None:
    """Answer requests until SIGTERM or SIGINT; then take no more, and finish those that were begun.

    Requests that come while the model is loaded are told to come again.

    Args:
        announce: called once the model is loaded.

    Raises:
        ModelError: the model can't be loaded.
        UsageError: what the service is to answer with can't be used.
    """
    _allow_many_connections()
    asyncio.run(_serve(_Server(server_config(app)), service, listener, announce))


def server_config(app: ASGIApp) -> uvicorn.Config:
    """Return how uvicorn serves the application."""
    return uvicorn.Config(
        app,
        http=_PatientProtocol,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        h11_max_incomplete_event_size=_MOST_HEAD_BYTES,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def _allow_many_connections() -> None:
    """Raise the number of files that may be open, of which each connection is one; often it is no more than 1024."""
    if sys.platform == "win32":
        return
    import resource

    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_CONNECTIONS if most == resource.RLIM_INFINITY else min(most, _MOST_CONNECTIONS)
    if now != resource.RLIM_INFINITY and now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


async def _serve(server: "_Server", service: Service, listener: socket.socket, announce: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.force_exit = server.should_exit  # a second signal doesn't wait
        server.should_exit = True

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)

    # the loop waits for its own threads when it ends, but not for one that still loads
    loader = ThreadPoolExecutor(1, "load")

    async def load() -> None:
        try:
            await loop.run_in_executor(loader, service.warm_up)
        except BaseException:
            server.should_exit = True
            raise
        announce()

    loading = asyncio.create_task(load())
    try:
        await server.serve(sockets=[listener])
        if loading.done():
            loading.result()
    finally:
        service.close()


class _Server(uvicorn.Server):
    # uvicorn's own would raise the signal again when all is done
    def capture_signals(self) -> Any:
        return nullcontext()


class _PatientProtocol(H11Protocol):
    """HTTP/1.1 that closes connections whose clients neither send what they began nor take their answer."""

    def connection_made(self, transport: Any) -> None:
        transport.max_size = _MOST_READ_BYTES
        super().connection_made(transport)
        self._seen: Any = None
        self._watch = self.loop.call_later(HEAD_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._watch.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        is_answered = self.cycle is not None and self.cycle.response_complete
        waits_for_client = (
            unsent > 0
            or self.conn.their_state is h11.IDLE
            # of a body that nobody wants
            or (self.conn.their_state is h11.SEND_BODY and is_answered)
        )
        now = (self.cycle, self.conn.their_state, unsent)
        if waits_for_client and now == self._seen:
            self.transport.abort()
            return
        self._seen = now
        self._watch = self.loop.call_later(HEAD_SECONDS, self._look)
