"""Drive a headless Chromium through its debugging pipe: open a page, press keys, look at what is there."""

import base64
import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_PATIENCE = 60.0
_OPTIONS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--disable-extensions"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
]
# the codes of keys that aren't signs
_KEYS = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Backspace": 8}


class Page:
    """A page in a browser. Messages are JSON, each ended by NUL.

    Attributes:
        messages: what the page's console and the page itself complained of.
    """

    def __init__(self, commands: int, answers: int, downloads: Path) -> None:
        self._commands = commands
        self._answers = answers
        self._read = b""
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._loaded = 0
        self.messages: list[str] = []
        self.downloads = downloads
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")
        self.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the browser's protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        while (answer := self._receive()).get("id") != number:
            self._take(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, address: str, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        """Open an address, and wait until it is loaded."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        before = self._loaded
        self.call("Page.navigate", url=address)
        while self._loaded == before:
            self._take(self._receive())

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression, awaited."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def press(self, key: str, control: bool = False) -> None:
        """Press a key and let it go."""
        text = "\r" if key == "Enter" else key if len(key) == 1 and not control else ""
        code = _KEYS.get(key, ord(key.upper()) if len(key) == 1 else 0)
        fields = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 2 if control else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **fields)
        self.call("Input.dispatchKeyEvent", type="keyUp", **fields)

    def type(self, text: str) -> None:
        """Press the keys of a text."""
        for sign in text:
            self.press(sign)

    def screenshot(self, path: Path) -> None:
        """Save what the window shows."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def downloaded(self, name: str) -> Path:
        """Wait for a file that the page saves."""
        end = time.monotonic() + _PATIENCE
        while not (self.downloads / name).exists():
            if time.monotonic() > end:
                raise TimeoutError(f"{name} was not saved")
            time.sleep(0.02)
        return self.downloads / name

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            if not select.select([self._answers], [], [], _PATIENCE)[0]:
                raise TimeoutError("the browser doesn't answer")
            piece = os.read(self._answers, 1 << 20)
            if not piece:
                raise RuntimeError("the browser has ended")
            self._read += piece
        message, _, self._read = self._read.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def _take(self, event: dict[str, Any]) -> None:
        match event:
            case {"method": "Page.loadEventFired"}:
                self._loaded += 1
            case {"method": "Log.entryAdded", "params": {"entry": {"text": text}}}:
                self.messages.append(text)
            case {"method": "Runtime.exceptionThrown", "params": {"exceptionDetails": details}}:
                self.messages.append(str(details.get("exception", details)))


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    """Start Chromium with a profile of its own, and end it."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()

        def place_pipes() -> None:
            # the protocol is spoken on descriptors 3 and 4
            spare_in, spare_out = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(spare_in, 3)
            os.dup2(spare_out, 4)

        process = subprocess.Popen(
            [CHROMIUM, *_OPTIONS, f"--user-data-dir={folder}/profile"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=place_pipes,
            close_fds=False,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            downloads = Path(folder, "downloads")
            downloads.mkdir()
            yield Page(ours_out, ours_in, downloads)
        finally:
            os.close(ours_out)
            os.close(ours_in)
            process.terminate()
            process.wait(20)
