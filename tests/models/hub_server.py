"""A small Hugging Face Hub on this machine: serves files as the real one does, and misbehaves as a test wishes.

The protocol is the one that huggingface_hub's `file_download` speaks: HEAD and GET of `/ORG/REPO/resolve/REV/FILE`,
large files behind a redirect to another host's name, `Range`, errors named by `X-Error-Code`, tokens for the Xet store.
"""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# larger files are the storage's, as weights are
LARGE = 10_000


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers one request; a `Fault` is given it first."""

    protocol_version = "HTTP/1.1"
    server: "HubServer"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_CONNECT(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        pass

    def reply(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        """Send a whole answer."""
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def hang_up(self) -> None:
        """Close the connection without another word."""
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(2)

    def _answer(self) -> None:
        path = unquote(self.path).split("?")[0].strip("/")
        self.server.requests.append(f"{self.command} {path}")
        with contextlib.suppress(OSError):  # the client has gone
            if self.server.fault is None or not self.server.fault(self, path):
                self._serve(path)

    def _serve(self, path: str) -> None:
        match path.split("/"):
            case ["api", "models", *rest] if "xet-read-token" in rest:
                self.reply(200, self.server.xet)
            case ["api", "models", org, name, *_]:
                self._describe(f"{org}/{name}")
            case ["storage", digest]:
                self._send(self.server.stored[digest])
            case [org, name, "resolve", revision, *file]:
                self._resolve(f"{org}/{name}", revision, "/".join(file))
            case _:
                self.reply(200, {"Content-Type": "text/html"}, b"<html>the hub</html>")

    def refuse(self, status: int, code: str, message: str = "") -> None:
        """Send one of the hub's errors."""
        self.reply(status, {"X-Error-Code": code, "X-Error-Message": message or code, "X-Repo-Commit": COMMIT})

    def _describe(self, repo: str) -> None:
        files = self.server.repos.get(repo)
        if files is None:
            self.refuse(401, "RepoNotFound")
            return
        about = {"id": repo, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        self.reply(200, {"Content-Type": "application/json"}, json.dumps(about).encode())

    def _resolve(self, repo: str, revision: str, file: str) -> None:
        files = self.server.repos.get(repo)
        if files is None:
            self.refuse(401, "RepoNotFound", "Invalid username or password.")
        elif revision not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        elif file not in files:
            self.refuse(404, "EntryNotFound", "Entry not found")
        elif len(files[file]) > LARGE:
            self._redirect(files[file], f"{repo}/xet-read-token/{COMMIT}")
        else:
            etag = hashlib.sha1(b"blob %d\0" % len(files[file]) + files[file]).hexdigest()
            self.reply(200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, self.server.sent(files[file]))

    def _redirect(self, content: bytes, token: str) -> None:
        digest = hashlib.sha256(content).hexdigest()
        self.server.stored[digest] = content
        headers = {
            "Location": f"http://localhost:{self.server.server_port}/storage/{digest}",
            "X-Linked-Size": str(len(content)),
            "X-Linked-ETag": f'"{digest}"',
            "X-Repo-Commit": COMMIT,
        }
        if self.server.xet:
            headers |= {
                "X-Xet-Hash": digest,
                "Link": f'<{self.server.endpoint}/api/models/{token}>; rel="xet-auth"',
            }
        self.reply(302, headers)

    def _send(self, content: bytes) -> None:
        content = self.server.sent(content)
        asked = self.headers.get("Range")
        first = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        headers = {"Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self.reply(206 if asked else 200, headers, content[first:])


#: Answers a request in its own way, and returns whether it has.
Fault = Callable[[Handler, str], bool]


class HubServer(http.server.ThreadingHTTPServer):
    """The hub, listening.

    Attributes:
        repos: the files of each repository.
        requests: what was asked for, in order.
        fault: what goes wrong; None for a hub in good health.
        xet: the headers of a token for the Xet store; empty for none.
        sent: what is sent of a file instead of its content.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fault: Fault | None = None
        self.xet: dict[str, str] = {}
        self.sent: Callable[[bytes], bytes] = lambda content: content
        self.ended = threading.Event()

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: object) -> None:
        """Keep quiet: clients that give up hang up."""

    def add(self, repo: str, folder: Path) -> None:
        """Serve the files of a folder as a repository."""
        self.repos[repo] = {path.name: path.read_bytes() for path in folder.iterdir()}

    def use_xet(self, store: str) -> None:
        """Say that large files are in a Xet store at this address."""
        self.xet = {
            "X-Xet-Cas-Url": store,
            "X-Xet-Access-Token": "token",
            "X-Xet-Token-Expiration": "4000000000",
        }


@contextlib.contextmanager
def running() -> Iterator[HubServer]:
    """Run a hub without repositories."""
    with HubServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.ended.set()
            server.shutdown()
            thread.join()


# ---------------------------------------------------------------------------------------------------------
# What goes wrong


def status(code: int, headers: dict[str, str] | None = None, *, of: str = "resolve") -> Fault:
    """Answer all requests whose path has `of` in it with an error."""

    def fault(handler: Handler, path: str) -> bool:
        if of not in path:
            return False
        handler.reply(code, headers, b"<html>a proxy's own page</html>")
        return True

    return fault


def refuse(code: int, error: str) -> Fault:
    """Answer all requests for files with one of the hub's errors."""

    def fault(handler: Handler, path: str) -> bool:
        if "resolve" not in path:
            return False
        handler.refuse(code, error)
        return True

    return fault


def cut(length: int, *, then: Fault | None = None) -> Fault:
    """Send so many bytes of each large file and hang up; afterwards answer its requests as `then` does."""
    begun = False

    def fault(handler: Handler, path: str) -> bool:
        nonlocal begun
        if not path.startswith("storage/"):
            return False
        if begun and then is not None:
            return then(handler, path)
        if not begun:
            content = handler.server.stored[path.removeprefix("storage/")]
            handler.send_response(200)
            handler.send_header("Content-Length", str(len(content)))
            handler.end_headers()
            handler.wfile.write(content[:length])
            handler.wfile.flush()
        begun = True
        handler.hang_up()
        return True

    return fault


def hang(handler: Handler, path: str) -> bool:
    """Never answer."""
    handler.server.ended.wait(120)
    handler.close_connection = True
    return True


def nonsense(handler: Handler, path: str) -> bool:
    """Answer with what isn't HTTP."""
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")
    handler.hang_up()
    return True


def with_headers(headers: dict[str, str]) -> Fault:
    """Add headers to all answers."""

    def fault(handler: Handler, path: str) -> bool:
        end = handler.end_headers

        def end_headers() -> None:
            for name, value in headers.items():
                handler.send_header(name, value)
            end()

        handler.end_headers = end_headers  # type: ignore[method-assign]
        handler._serve(path)
        handler.end_headers = end  # type: ignore[method-assign]
        return True

    return fault


@dataclass
class Once:
    """Goes wrong for the first requests for files only."""

    fault: Fault
    times: int = 1
    _seen: int = field(default=0, init=False)

    def __call__(self, handler: Handler, path: str) -> bool:
        if "resolve" not in path or self._seen >= self.times:
            return False
        self._seen += 1
        return self.fault(handler, path)
