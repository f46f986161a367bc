"""The page at `/`, in a browser where there is one, before a server that speaks as `clipcls serve` does."""

import base64
import hashlib
import json
import re
import shlex
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

import serving
from browser import CHROMIUM, Page, browser
from clipcls.labels.label_files import make_label
from clipcls.labels.prompts import templates_set
from clipcls.serve.page import page as served_page
from clipcls.serve.service import ServiceSettings

ROOT = Path(__file__).parents[2]
HOSTILE = "<img src=x onerror=alert(1)>"
MODEL = {
    "name": "photo",
    "embed_dim": 512,
    "device": "cpu",
    "precision": "bf16",
    "runtime": "torch",
    "input_size": [224, 224],
    "context_length": 77,
    "labels": None,
    "prompts": "default",
}


@dataclass
class Server:
    """A server that answers with the scores 0.6, 0.3, and a share of 0.1 for each further label.

    Attributes:
        key: what requests must have; empty for none.
        busy: how many requests are still answered with 503, by path.
        asked: the fields of the requests to /predict and /search that got an answer.
    """

    model: dict[str, Any] = field(default_factory=lambda: dict(MODEL))
    key: str = ""
    max_pictures: int = 64
    search: bool = False
    warnings: list[str] = field(default_factory=list)
    busy: dict[str, int] = field(default_factory=dict)
    asked: list[dict[str, list[str]]] = field(default_factory=list)
    address: str = ""

    def models(self) -> dict[str, Any]:
        return {
            "models": [self.model],
            "prompt_sets": ["default", "none"],
            "scores": ["softmax", "sigmoid", "cosine"],
            "max_pictures": self.max_pictures,
            "search": self.search,
        }

    def predict(self, asked: dict[str, list[str]]) -> tuple[int, Any]:
        if asked["files"] == ["bad.png"]:
            return 415, error("bad.png is no picture", "files")
        labels = asked.get("label") or self.model["labels"]
        if "wrong" in labels:
            return 422, error("wrong is no label", "label")
        rows = [self.row(name, labels, "unknown" in asked) for name in asked["files"]]
        return 200, {"model": "photo", "predictions": rows, "warnings": self.warnings}

    def row(self, name: str, labels: list[str], has_known: bool) -> dict[str, Any]:
        if name == "bad.png":
            return {"path": name, "label": None, "score": None, "similarity": None, "top": [], "error": "no picture"}
        scores = [0.6, 0.3, *(0.1 / max(len(labels) - 2, 1) for _ in labels)]
        top = [{"label": one, "score": s, "similarity": 0.2} for one, s in zip(labels, scores, strict=False)]
        return {"path": name, **top[0], "top": top, "error": None} | ({"known": 0.93} if has_known else {})


def error(message: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "param": param, "type": "invalid_request_error"}}


def form_of(content_type: str, body: bytes) -> dict[str, list[str]]:
    """The fields of a request; names of files for files."""
    if content_type == "application/json":
        return {name: [str(value)] for name, value in json.loads(body).items()}
    found: dict[str, list[str]] = {}
    for part in body.split(b"--" + content_type.partition("boundary=")[2].encode())[1:-1]:
        head, _, value = part.removesuffix(b"\r\n").decode("utf-8", "replace").partition("\r\n\r\n")
        (name, file), *_ = re.findall(r'form-data; name="(.*?)"(?:; filename="(.*)")?', head)
        found.setdefault(name, []).append(file or value)
    return found


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/":
            return self.send(200, served_page().html, served_page().headers)
        return self.answer(lambda: (200, self.stub.models()))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = form_of(self.headers["Content-Type"], body)

        def found() -> tuple[int, Any]:
            self.stub.asked.append(asked)
            if self.path == "/predict":
                return self.stub.predict(asked)
            return 200, {"hits": [{"path": HOSTILE, "score": 0.8, "similarity": 0.3}]}

        self.answer(found)

    @property
    def stub(self) -> Server:
        return cast("Any", self.server).stub  # type: ignore[no-any-return]

    def answer(self, found: Any) -> None:
        if self.stub.key and self.headers["Authorization"] != f"Bearer {self.stub.key}":
            status, answer = 401, error("a key is needed")
        elif self.stub.busy.get(self.path, 0):
            self.stub.busy[self.path] -= 1
            status, answer = 503, error("busy")
        else:
            status, answer = found()
        self.send(status, json.dumps(answer).encode(), {"Content-Type": "application/json", "Retry-After": "0"})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        stub = Server(address=f"http://127.0.0.1:{listening.server_address[1]}/")
        cast("Any", listening).stub = stub
        threading.Thread(target=listening.serve_forever, args=(0.01,)).start()
        try:
            yield stub
        finally:
            listening.shutdown()


@pytest.fixture(scope="module")
def opened() -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with browser() as page:
        yield page


@pytest.fixture
def page(opened: Page) -> Iterator[Page]:
    """The browser; what it complains of, but for the statuses that a test means, fails the test."""
    opened.messages.clear()
    yield opened
    assert [text for text in opened.messages if "responded with a status of" not in text] == []


def until(page: Page, condition: str) -> None:
    """Wait until an expression is true in the page."""
    waited = f"""(async () => {{
        for (const end = Date.now() + 20000; Date.now() < end; await new Promise((go) => setTimeout(go, 10)))
            if ({condition}) return true;
    }})()"""
    assert page.evaluate(waited), f"{condition}: {page.evaluate('document.body.innerText')}"


def choose(page: Page, *files: Path) -> None:
    found = page.call("Runtime.evaluate", expression="byId('files')")["result"]["objectId"]
    page.call("DOM.setFileInputFiles", files=list(map(str, files)), objectId=found)


def fill(page: Page, name: str, text: str) -> None:
    """Type over what a field holds."""
    page.evaluate(f"byId({name!r}).focus(); byId({name!r}).select()")
    page.call("Input.insertText", text=text)


def text(page: Page, selector: str) -> list[str]:
    found = page.evaluate(f"[...document.querySelectorAll({selector!r})].map((one) => one.innerText)")
    return cast("list[str]", found)


def start(page: Page, server: Server, labels: str = "cat, dog") -> None:
    page.open(server.address)
    until(page, "model")
    fill(page, "labels", labels)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name in ("a.png", "b.png", f"{HOSTILE}'\";.png", "-c d.png"):
        Image.new("RGB", (8, 8), "red").save(folder / name)
    (folder / "bad.png").write_bytes(b"no picture")
    return folder


DONE = "pictures.length && pictures.every((picture) => picture.key === round.key)"


def test_policy_lets_only_the_own_script_and_style_run() -> None:
    html, headers = served_page().html.decode(), served_page().headers
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    for tag in ("style", "script"):
        (own,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert (
            policy.pop(f"{tag}-src") == f"'sha256-{base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()}'"
        )
    none = dict.fromkeys(("default-src", "base-uri", "form-action", "frame-ancestors"), "'none'")
    assert policy == none | {"img-src": "blob: data:", "connect-src": "'self'"}
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert not re.search(r"<[^>]* (on\w+|style|src)=|innerHTML|http:|https:", html)
    assert served_page() is served_page()


def test_chosen_pictures_get_bars_by_one_request(page: Page, server: Server, pictures: Path) -> None:
    server.warnings = ["“cat” is short"]
    start(page, server, "cat, dog\nbird,, cat ")
    choose(page, pictures / "a.png", pictures / "b.png")
    until(page, DONE)
    assert text(page, ".card h2") == ["cat", "cat"]
    assert text(page, ".card .path") == ["a.png", "b.png"]
    assert text(page, ".card:first-child .bars span") == ["cat", "60.0 %", "dog", "30.0 %", "bird", "10.0 %"]
    assert text(page, "#warnings p") == server.warnings
    (asked,) = server.asked
    fields = {"label": ["cat", "dog", "bird"], "top_k": ["3"], "score": ["softmax"], "threshold": ["0"]}
    assert asked == {"files": ["a.png", "b.png"], **fields}
    # others come on top, and alone are asked about
    choose(page, pictures / "-c d.png")
    until(page, DONE)
    assert [asked["files"] for asked in server.asked[1:]] == [["-c d.png"]]
    assert text(page, ".card .path") == ["-c d.png", "a.png", "b.png"]
    loaded = page.evaluate("performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert all(name.startswith((server.address, "blob:", "data:")) for name in loaded), loaded
    # a removed picture's thumbnail is given back, and the focus stays near
    url = page.evaluate("pictures[0].url")
    page.evaluate("document.querySelector('.remove').click()")
    assert page.evaluate(f"fetch({url!r}).then(() => 'there', () => 'gone')") == "gone"
    page.messages.clear()
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Remove a.png"


def test_dropped_and_pasted_pictures(page: Page, server: Server) -> None:
    server.max_pictures = 1
    start(page, server)
    page.evaluate("""for (const [event, name, field] of [[DragEvent, "drop", "dataTransfer"], [ClipboardEvent, "paste", "clipboardData"]]) {
        const moved = new DataTransfer();
        moved.items.add(new File(["x"], "image.png", { type: "image/png" }));
        document.dispatchEvent(new event(name, { [field]: moved, cancelable: true }));
    }""")  # noqa: E501
    until(page, DONE)
    assert text(page, ".card .path") == ["pasted-1.png", "image.png"]
    assert [asked["files"] for asked in server.asked] == [["pasted-1.png"], ["image.png"]]
    until(page, "document.querySelectorAll('.box span').length === 2")
    assert text(page, ".box") == ["no preview", "no preview"]


def test_names_and_labels_stay_text(page: Page, server: Server, pictures: Path) -> None:
    server.warnings, server.search = [HOSTILE], True
    server.model |= {"name": HOSTILE, "prompts": HOSTILE, "labels": [HOSTILE, "a, b", "\u202egnp"]}
    page.open(server.address)
    until(page, "model")
    before = page.evaluate("document.querySelectorAll('img').length")
    (name,) = (path.name for path in pictures.iterdir() if HOSTILE in path.name)
    choose(page, pictures / name)
    until(page, DONE)
    # the server's own labels aren't sent: they may have prompts of their own
    assert "label" not in server.asked[0]
    assert text(page, ".card h2, .card .path, #warnings p") == [HOSTILE, HOSTILE, name]
    assert text(page, ".bars span:first-child") == [HOSTILE, "a, b", "\ufffdgnp"]
    assert page.evaluate("document.querySelectorAll('img').length") == before + 1
    page.evaluate("view('search')")
    fill(page, "query", HOSTILE)
    page.press("Enter")
    until(page, "byId('hits').children.length")
    assert text(page, "#hits span") == [HOSTILE, "0.800"]
    assert server.asked[-1] == {"query": [HOSTILE], "top_k": ["10"]}
    choose(page, pictures / "a.png")
    until(page, "byId('found').textContent === '1 hit' && byId('asked').children.length")
    assert server.asked[-1] == {"files": ["a.png"], "top_k": ["10"]}
    assert page.evaluate("document.querySelectorAll('img').length") == before + 2


def test_key_is_asked_for_and_kept(page: Page, server: Server, pictures: Path) -> None:
    server.key = "sesame"
    page.open(server.address)
    for key, refused in (("wrong", "This key is not right."), ("sesame", None)):
        until(page, "!byId('locked').hidden && document.activeElement === byId('key')")
        page.type(key)
        page.press("Enter")
        until(page, f"byId('refused').textContent === {refused!r}" if refused else "model")
    page.open(server.address)
    until(page, "model")
    assert page.evaluate("byId('locked').hidden && !localStorage.getItem('clipcls-key')")
    fill(page, "labels", "cat")
    # another key, while the page is open
    server.key = "other"
    choose(page, pictures / "a.png")
    until(page, "!byId('locked').hidden")
    page.type("other")
    page.press("Enter")
    until(page, DONE)


def test_busy_server_is_asked_again(page: Page, server: Server, pictures: Path) -> None:
    server.busy = {"/models": 2, "/predict": 1}
    page.open(server.address)
    until(page, "byId('state').textContent === 'Getting ready…'")
    start(page, server)
    choose(page, pictures / "a.png")
    until(page, "byId('state').textContent.startsWith('The server is busy. Trying again')")
    until(page, DONE)
    assert text(page, "#state") == ["1 picture"]
    # some times only; then the user decides
    page.evaluate("setTimeout = ((real) => (call, time) => real(call, time / 50))(setTimeout)")
    server.busy = {"/predict": 5}
    choose(page, pictures / "b.png")
    until(page, "!byId('problem').hidden")
    assert text(page, "#problem span") == ["busy"]
    page.evaluate("byId('again').click()")
    until(page, f"{DONE} && byId('problem').hidden")


def test_threshold_cuts_without_a_request(page: Page, server: Server, pictures: Path) -> None:
    start(page, server)
    choose(page, pictures / "a.png", pictures / "bad.png")
    until(page, DONE)
    assert text(page, ".card h2") == ["cat", "no answer"]
    assert text(page, ".error") == ["no picture"]
    for cut, answer in (("60", "cat"), ("60.1", "unknown"), ("70", "unknown")):
        fill(page, "cut-number", cut)
        assert text(page, ".card:first-child h2") == [answer]
    assert len(server.asked) == 1
    rows = page.evaluate("pictures.map(rowOf)")
    assert [(row["path"], row["label"], row["score"], row["error"]) for row in rows] == [
        ("a.png", None, 0.6, None),
        ("bad.png", None, None, "no picture"),
    ]
    # the settings are there again, the pictures aren't
    page.open(server.address)
    until(page, "model")
    values = page.evaluate("['labels', 'cut', 'cut-number'].map((name) => byId(name).value)")
    assert (values, text(page, ".card")) == (["cat, dog", "70", "70"], [])


def test_several_labels_and_unknown(page: Page, server: Server, pictures: Path) -> None:
    start(page, server, "cat, dog, bird")
    choose(page, pictures / "a.png")
    until(page, DONE)
    page.evaluate("byId('multi').click(); byId('unknown').click()")
    until(page, DONE)
    fields = {"score": ["sigmoid"], "multi_label": ["true"], "unknown": ["true"], "threshold": ["0"]}
    assert fields.items() <= server.asked[-1].items()
    assert len(server.asked) == 2
    assert text(page, ".card h2") == ["cat"]
    fill(page, "cut-number", "20")
    assert text(page, ".card h2") == ["cat, dog"]
    (row,) = page.evaluate("pictures.map(rowOf)")
    assert (row["label"], len(row["top"]), row["known"]) == ("cat", 2, 0.93)


def test_change_of_labels_asks_again_once_it_is_quiet(page: Page, server: Server, pictures: Path) -> None:
    start(page, server, ", ".join(f"l{number}" for number in range(12)))
    choose(page, pictures / "a.png", pictures / "b.png")
    until(page, DONE)
    assert len(text(page, ".card:first-child .bars li")) == 10
    page.evaluate("document.querySelector('.plain:not([id])').click()")
    assert len(text(page, ".card:first-child .bars li")) == 12
    # the answer to an older question is dropped
    server.busy = {"/predict": 1}
    fill(page, "labels", "dog")
    until(page, "byId('state').textContent.startsWith('The server is busy')")
    fill(page, "labels", "")
    page.type("fox,")
    until(page, DONE)
    assert [asked["label"] for asked in server.asked[1:]] == [["fox"]]
    assert text(page, ".card h2") == ["fox", "fox"]
    fill(page, "labels", "wrong")
    until(page, "byId('labels').getAttribute('aria-invalid') === 'true'")
    assert text(page, "#problem span") == ["wrong is no label"]
    fill(page, "labels", "fox")
    assert page.evaluate("byId('problem').hidden")


def test_single_picture_that_cannot_be_read_is_an_error_of_its_own(
    page: Page, server: Server, pictures: Path, tmp_path: Path
) -> None:
    start(page, server)
    choose(page, pictures / "bad.png")
    until(page, DONE)
    assert text(page, ".error") == ["bad.png is no picture"]
    assert page.evaluate("byId('problem').hidden")
    # a file that is gone keeps no other from its answer
    gone = tmp_path / "gone.png"
    gone.write_bytes(b"x")
    page.evaluate("byId('files').addEventListener('change', () => clearTimeout(quiet))")
    choose(page, gone, pictures / "a.png")
    until(page, "pictures.length === 3")
    gone.unlink()
    page.evaluate("work()")
    until(page, DONE)
    page.messages.clear()
    assert text(page, ".card h2") == ["no answer", "cat", "no answer"]


def test_commands_are_quoted(page: Page, server: Server, pictures: Path) -> None:
    start(page, server, "it's, @x, $(id)")
    page.evaluate("document.querySelector('summary').click()")
    fill(page, "template", 'a "photo" of {}')
    names = ["-c d.png", f"{HOSTILE}'\";.png"]
    choose(page, *(pictures / name for name in names))
    until(page, DONE)
    fill(page, "cut-number", "25")
    page.call("Browser.grantPermissions", permissions=["clipboardReadWrite"])
    page.evaluate("byId('copy').click()")
    until(page, "byId('copy').textContent === 'Copied'")
    lines = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert [json.loads(line)["path"] for line in lines] == names
    page.evaluate("byId('commands').click()")
    curl, predict = (page.evaluate(f"commands.{name}") for name in ("curl", "predict"))
    said = subprocess.run(
        ["sh", "-c", f"curl() {{ printf '%s\\0' \"$@\"; }}\n{curl}"], stdout=subprocess.PIPE, check=True
    )
    address, *options = said.stdout.decode().split("\0")[:-1]
    fields = ["label=it's", "label=@x", "label=$(id)", 'template=a "photo" of {}', "top_k=3", "score=softmax"]
    assert address == f"{server.address}predict"
    assert options[1:14:2] == [*fields, "threshold=0.25"]
    assert options[15::2] == ['files=@"-c d.png"', f'files=@"{HOSTILE}\'\\";.png"']
    words = shlex.split(predict.replace("\\\n", " "))
    assert words[:4] == ["clipcls", "predict", f"./{names[0]}", names[1]]
    assert words[4:8] == ["--model=photo", "--label=it's", "--label=@x", "--label=$(id)"]
    assert words[-3:] == ["--score=softmax", "--threshold=0.25", "--format=jsonl"]


def test_the_real_server(page: Page) -> None:
    labels = tuple(map(make_label, ["cat", "dog", "truck"]))
    with serving.served("pictogram", ServiceSettings(labels, templates_set(["the {}"]))) as running:
        page.open(f"{running.url}/")
        until(page, "byId('labels').value === 'cat, dog, truck'")
        choose(page, ROOT / "examples/images/dog-face.png", ROOT / "README.md")
        until(page, DONE)
        assert text(page, ".card h2") == ["dog", "no answer"]
        assert "not an image in a format Pillow reads" in page.evaluate("byId('pictures').innerText")
        page.evaluate("makeCommands()")
        assert "'--template=the {}'" in page.evaluate("commands.predict")
        page.evaluate("document.querySelector('details').open = true")
        fill(page, "template", "a drawing of a {}")
        until(page, f"{DONE} && byId('template').value")
        page.evaluate("byId('unknown').click()")
        until(page, f"{DONE} && byId('pictures').innerText.includes('known')")
