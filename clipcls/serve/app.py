"""The server's routes, behind its key, its log and its figures."""

import asyncio
import hmac
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clipcls.errors import printable, shortened
from clipcls.serve.bodies import BodyReader
from clipcls.serve.dialects import HuggingFace, OpenAI
from clipcls.serve.docs import docs_page, openapi
from clipcls.serve.endpoints import OwnDialect
from clipcls.serve.figures import TEXT_TYPE, Figures
from clipcls.serve.page import page
from clipcls.serve.problems import RequestError, not_ready, problem_of, response_to
from clipcls.serve.service import Service

logger = logging.getLogger(__name__)

#: What needs no key: it tells nothing of the pictures, labels or model.
OPEN_PATHS = frozenset(["/health", "/ready", "/docs", "/openapi.json"])

Endpoint = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class AppSettings:
    """What the server requires, and what it says of requests.

    Attributes:
        api_key: what requests have to bring; None for no key.
        log: writes a line; None for no line a request.
        log_format: of these lines.
        most_request_bytes: a larger body is refused.
        most_held_bytes: of all bodies that haven't been answered.
        origins: of pages elsewhere whose scripts may read answers; `*` for any.
    """

    api_key: str | None = field(default=None, repr=False)
    log: Callable[[str], None] | None = None
    log_format: Literal["text", "json"] = "text"
    most_request_bytes: int = 2**26
    most_held_bytes: int = 2**30
    origins: tuple[str, ...] = ()


def create_app(service: Service, settings: AppSettings) -> ASGIApp:
    """Return the server's ASGI application."""
    figures = Figures(service)
    bodies = BodyReader(settings.most_request_bytes, settings.most_held_bytes)
    own, hugging_face, openai = OwnDialect(service, bodies), HuggingFace(service, bodies), OpenAI(service, bodies)

    async def home(_: Request) -> Response:
        found = page()
        return Response(found.html, headers=found.headers)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        if not service.is_ready:
            raise not_ready()
        return JSONResponse({"status": "ready"})

    async def metrics(_: Request) -> Response:
        return Response(figures.text(), media_type=TEXT_TYPE)

    async def docs(request: Request) -> Response:
        found = docs_page(str(request.base_url).rstrip("/"))
        return Response(found.html, headers=found.headers)

    async def specification(_: Request) -> Response:
        return JSONResponse(openapi())

    endpoints: list[tuple[str, str, Endpoint]] = [
        ("GET", "/", home),
        ("POST", "/", hugging_face.classify),
        ("POST", "/predict", own.predict),
        ("POST", "/embed", own.embed),
        ("POST", "/search", own.search),
        ("GET", "/models", own.models),
        ("POST", "/v1/embeddings", openai.embeddings),
        ("GET", "/v1/models", openai.models),
        ("GET", "/v1/models/{name:path}", openai.model),
        ("GET", "/health", health),
        ("GET", "/ready", ready),
        ("GET", "/metrics", metrics),
        ("GET", "/docs", docs),
        ("GET", "/openapi.json", specification),
    ]
    routes = [Route(path, _answering(endpoint), methods=[method]) for method, path, endpoint in endpoints]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _answer_http})
    app.router.redirect_slashes = False  # to wherever the client's Host says
    gate = _Gate(app, settings, figures, frozenset(path for _, path, _ in endpoints))
    if not settings.origins:
        return gate
    # outside of the gate, since browsers ask beforehand without a key
    return CORSMiddleware(
        gate, settings.origins, ["GET", "POST"], ["Authorization", "Content-Type"], expose_headers=["Retry-After"]
    )


def _answering(endpoint: Endpoint) -> Endpoint:
    """Have an endpoint answer what goes wrong, so that nothing ends the server or shows its insides."""

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except asyncio.CancelledError:
            raise
        except BaseException as exc:  # SystemExit too may come from a thread
            problem = problem_of(exc)
            if problem is None:
                said = printable(shortened(f"{type(exc).__name__}: {exc}"))
                logger.error("%s %s: %s", request.method, request.scope["path"], said)
                logger.info("where it happened", exc_info=exc)
                problem = RequestError(500, "A fault of the server; its log says more.")
            return response_to(problem)

    return answered


async def _answer_http(_: Request, exc: Exception) -> Response:
    problem = problem_of(exc)
    assert problem is not None
    response = response_to(problem)
    response.headers.update(getattr(exc, "headers", None) or {})
    return response


class _Gate:
    """Asks for the key, counts requests, and writes a line for each."""

    def __init__(self, app: ASGIApp, settings: AppSettings, figures: Figures, paths: frozenset[str]) -> None:
        self._app = app
        self._settings = settings
        self._figures = figures
        self._paths = paths
        key = settings.api_key
        self._expected = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; see ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 0
        state: dict[str, Any] = scope.setdefault("state", {})
        state["pictures"] = state["failed_pictures"] = 0

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self._is_allowed(scope):
                await self._app(scope, receive, counting)
            else:
                wrong = RequestError(
                    401, "The API key is missing or wrong: Authorization: Bearer KEY.", "Authorization"
                )
                await response_to(wrong)(scope, receive, counting)
        finally:
            seconds = time.perf_counter() - began
            known = scope["path"] if scope["path"] in self._paths else "other"
            self._figures.add(known, status, seconds, state["pictures"], state["failed_pictures"])
            self._write_line(scope, status, seconds, state)

    def _is_allowed(self, scope: Scope) -> bool:
        if self._expected is None or scope["path"] in OPEN_PATHS or (scope["path"], scope["method"]) == ("/", "GET"):
            return True
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        scheme, _, key = given.partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(key.strip(), self._expected)

    def _write_line(self, scope: Scope, status: int, seconds: float, state: dict[str, Any]) -> None:
        write = self._settings.log
        if write is None:
            return
        # a proxy on this machine says which client it has, whatever that client sent
        client = printable(shortened(scope["client"][0])) if scope.get("client") else "-"
        method, path = shortened(scope["method"]), printable(shortened(scope["path"]))
        if self._settings.log_format == "json":
            fields = {
                "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "client": client,
                "method": method,
                "path": path,
                "status": status,
                "ms": round(seconds * 1000, 1),
                "pictures": state["pictures"],
                "failed": state["failed_pictures"],
            }
            write(json.dumps(fields, ensure_ascii=False))
            return
        count = state["pictures"]
        pictures = f", {count} picture{'s' if count > 1 else ''}" if count else ""
        failed = f" ({state['failed_pictures']} failed)" if state["failed_pictures"] else ""
        write(f"{client} {method} {path} {status} {seconds * 1000:.1f} ms{pictures}{failed}")
