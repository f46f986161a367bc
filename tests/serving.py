"""A server on a thread of the test's process, and plain requests to it."""

import asyncio
import http.client
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.records import ModelSpec
from clipcls.serve.app import AppSettings, create_app
from clipcls.serve.server import listen, server_config
from clipcls.serve.service import Service, ServiceSettings


@dataclass
class Running:
    """A server that runs.

    Attributes:
        lines: what it logged, a line a request.
    """

    host: str
    port: int
    service: Service
    lines: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=30)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], Any]:
        """Return status, headers (names in lower case) and answer, bytes or what JSON says; so may the body be."""
        headers = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            headers.setdefault("Content-Type", "application/json")
        connection = self.connect()
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return answer.status, found, json.loads(data) if found.get("content-type") == "application/json" else data

    def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        status, _, answer = self.ask("POST", path, body, {name.replace("_", "-"): v for name, v in headers.items()})
        return status, answer

    def upload(self, path: str, files: list[tuple[str, bytes]], **fields: "str | list[str]") -> tuple[int, Any]:
        body, kind = form(files, **fields)
        return self.post(path, body, Content_Type=kind)


def form(files: list[tuple[str, bytes]], **fields: "str | list[str]") -> tuple[bytes, str]:
    """Return a multipart form and its media type."""
    parts = []
    for name, values in fields.items():
        for value in [values] if isinstance(values, str) else values:
            parts.append(f'Content-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode())
    for filename, data in files:
        head = f'Content-Disposition: form-data; name="files"; filename="{filename}"\r\n'
        parts.append(f"{head}Content-Type: application/octet-stream\r\n\r\n".encode() + data + b"\r\n")
    return b"".join(b"--edge\r\n" + part for part in parts) + b"--edge--\r\n", "multipart/form-data; boundary=edge"


def picture(colour: str = "red", size: tuple[int, int] = (40, 30), kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


@contextmanager
def served(
    model: "Path | str | Session",
    settings: ServiceSettings | None = None,
    app_settings: dict[str, Any] | None = None,
    execution: Execution | None = None,
) -> Iterator[Running]:
    """Serve a model, at a free port, as long as the context lasts."""
    session = model
    if not isinstance(session, Session):
        session = Session(ModelSpec(str(model), device="cpu", precision="fp32"), execution or Execution())
    service = Service(session, settings or ServiceSettings())
    listener = listen("127.0.0.1", 0)
    running = Running("127.0.0.1", listener.getsockname()[1], service)
    app = create_app(service, AppSettings(log=running.lines.append, **(app_settings or {})))
    server = uvicorn.Server(server_config(app))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    service.warm_up()
    thread.start()
    try:
        yield running
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)
        service.close()
        session.close()
