"""`clipcls serve` as a process: how it starts, what it says, and how it ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT
from serving import Running, form, picture


class Serving:
    """A process of `clipcls serve` at a port, and what it says."""

    def __init__(self, folder: Path, *arguments: str | Path, port: int = 0, **environment: str) -> None:
        command = [sys.executable, "-m", "clipcls", "serve", "--port", str(port), "--no-cache", *map(str, arguments)]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)} | environment,
        )
        assert self.process.stderr is not None
        first = self.process.stderr.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/ loads", first)
        assert found is not None, first
        self.port = int(found[1])

    def running(self) -> Running:
        return Running("127.0.0.1", self.port, None)  # type: ignore[arg-type]

    def wait_until_ready(self) -> list[int]:
        """Return the statuses of /ready, one after the other."""
        statuses = []
        deadline = time.monotonic() + 60
        while not statuses or statuses[-1] != 200:
            statuses.append(self.running().ask("GET", "/ready")[0])
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return statuses

    def end(self, number: int = signal.SIGTERM) -> list[str]:
        """Send a signal; return the lines on stderr since the first."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, errors
        return errors.splitlines()


@contextmanager
def serving(*arguments: Any, **options: Any) -> Iterator[Serving]:
    found = Serving(*arguments, **options)
    try:
        yield found
    finally:
        found.process.kill()
        found.process.communicate()


def test_a_server_from_its_start_to_its_end(clipcls: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["--model", tiny_model, "--labels", "red,green", "--log-format", "json"]
    with serving(tmp_path, *arguments, CLIPCLS_API_KEY="from-outside") as server:
        asking = server.running()
        assert asking.ask("GET", "/health")[0] == 200
        key = {"Authorization": "Bearer from-outside"}
        status, headers, _ = asking.ask("POST", "/predict", {"images": []}, key)
        statuses = server.wait_until_ready()
        assert set(statuses) == {503, 200} and status == 503 and "retry-after" in headers
        body, kind = form([("a\n.png", picture())])
        status, _, answer = asking.ask("POST", "/predict", body, key | {"Content-Type": kind})
        assert status == 200 and answer["predictions"][0]["label"] in ("red", "green")
        assert asking.ask("POST", "/predict", body, {"Content-Type": kind})[0] == 401
        assert asking.ask("GET", "/models", headers=key)[2]["models"][0]["labels"] == ["red", "green"]

        busy = clipcls("serve", "--model", tiny_model, "--port", str(server.port))
        assert busy.returncode == 2 and re.search(rb"Give another\s+--host or --port", busy.stderr)

        # what was begun is finished: the rest of the body comes after the signal
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer from-outside\r\nContent-Type: {kind}\r\n"
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:50])
            time.sleep(0.3)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(ConnectionRefusedError):
                asking.ask("GET", "/health")
            connection.sendall(body[50:])
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        _, errors = server.process.communicate(timeout=20)
        assert server.process.returncode == 0
        lines = [line for line in errors.splitlines() if not line.startswith("clipcls: ")]
        logged = [json.loads(line) for line in lines]
        assert [(line["path"], line["status"]) for line in logged if line["path"] == "/predict"] == [
            ("/predict", 503), ("/predict", 200), ("/predict", 401), ("/predict", 200)
        ]  # fmt: skip
        assert errors.splitlines()[-1] == "clipcls: stopped" and "from-outside" not in errors

    with serving(tmp_path, "--model", tiny_model, port=server.port) as again:
        again.wait_until_ready()
        assert again.end(signal.SIGINT)[-1] == "clipcls: stopped"


def test_what_keeps_a_server_from_starting(clipcls: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        (tmp_path / "broken" / name).write_bytes((tiny_model / name).read_bytes()[:1000])
    for arguments, code, says in [
        (["--model", tmp_path / "broken"], 3, "broken"),
        (["--model", tiny_model, "--prompts", "nosuch"], 2, "nosuch"),
        (["--model", tiny_model, "--features", tmp_path / "nosuch.npy"], 2, "nosuch.npy"),
        (["--model", tiny_model, "--host", "256.1.1.1"], 2, "--host"),
        (["--model", tiny_model, "--api-key", " "], 2, "--api-key"),
    ]:
        done = clipcls("serve", "--port", "0", *arguments)
        assert done.returncode == code, (arguments, done.stderr)
        assert says in done.stderr.decode().replace("\n", ""), done.stderr
        assert b"Traceback" not in done.stderr


WITHOUT = """
import sys
from typer.testing import CliRunner
from clipcls.cli import app
for missing in sys.argv[2:]:
    for name in [name for name in sys.modules if name.startswith((missing, "clipcls.serve."))]:
        del sys.modules[name]
    sys.modules[missing] = None
    print(CliRunner().invoke(app, ["serve", "--model", sys.argv[1], "--port", "0"]).exception)
    del sys.modules[missing]
"""


def test_without_the_extra_the_remedy_is_named(tiny_model: Path) -> None:
    """In a process of its own; some of these may be there without the others, since other packages bring them."""
    missing = ["starlette", "uvicorn", "python_multipart", "prometheus_client"]
    command = [sys.executable, "-c", WITHOUT, str(tiny_model), *missing]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60)
    for name, line in zip(missing, done.stdout.splitlines(), strict=True):
        assert f"needs the package {name}" in line and "pip install 'clipcls[serve]'" in line
