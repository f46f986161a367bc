"""What careless and hostile clients do, and what goes wrong within: the server answers others, and goes on."""

import base64
import http.client
import http.server
import io
import json
import logging
import re
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.errors import OutOfMemoryError
from clipcls.inputs.web import Web
from clipcls.records import ModelSpec
from clipcls.serve import batcher, bodies, classifiers, service
from clipcls.serve import server as server_module
from clipcls.serve.service import ServiceSettings
from serving import Running, form, picture, served

LABELS = ["red", "green", "blue"]
QUICK = 5.0  # seconds in which others have to be answered, on a busy machine


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Running]:
    limits = {"most_request_bytes": 2**20, "most_held_bytes": 2**21}
    with served(tiny_model, app_settings=limits, execution=Execution(max_pixels=1_000_000)) as running:
        yield running


@pytest.fixture
def cat() -> list[tuple[str, bytes]]:
    return [("cat.png", picture())]


def require_answer(server: Running) -> None:
    """Ask for a picture's label, which has to come soon."""
    began = time.monotonic()
    status, answer = server.upload("/predict", [("next.png", picture())], label=LABELS)
    assert status == 200 and answer["predictions"][0]["path"] == "next.png"
    assert time.monotonic() - began < QUICK


def raw(server: Running, *parts: bytes, timeout: float = 10) -> bytes:
    """What a server says to bytes, until it closes the connection or says no more."""
    with socket.create_connection((server.host, server.port), timeout=timeout) as connection:
        for part in parts:
            connection.sendall(part)
        return until_closed(connection)


def until_closed(connection: socket.socket) -> bytes:
    with io.BytesIO() as said:
        try:
            while data := connection.recv(65536):
                said.write(data)
        except ConnectionResetError:
            pass
        return said.getvalue()


def post(body: bytes, path: str = "/predict", kind: str = "application/json", length: int | None = None) -> bytes:
    """The bytes of a request."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def grey_png(width: int, height: int) -> bytes:
    """A PNG of one colour, which is small however many pixels it has."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(9)
    rows = b"".join([*(packer.compress(bytes(1 + width)) for _ in range(min(height, 500))), packer.flush()])
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# ---------------------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (picture(size=(1100, 1000)), 413, "pixels"),
        (grey_png(30_000, 30_000), 413, "pixels"),
        (picture(size=(300, 300), kind="JPEG")[:-900], 422, "a.png: "),
        (b"GIF89a", 422, "a.png: "),
        (b"", 422, "a.png: "),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "not an image"),
    ],
)
def test_a_bad_picture_is_an_error_alone_and_a_row_among_others(
    server: Running, data: bytes, status: int, says: str
) -> None:
    found, answer = server.upload("/predict", [("a.png", data)], label=LABELS)
    assert found == status and says in answer["error"]["message"] and answer["error"]["param"] == "images"
    found, answer = server.upload("/predict", [("a.png", data), ("b.png", picture())], label=LABELS)
    assert found == 200 and [row["error"] is None for row in answer["predictions"]] == [False, True]


@pytest.mark.parametrize(
    ("body", "kind", "status", "says"),
    [
        (b"", "application/json", 422, "no JSON"),
        (b"", "multipart/form-data; boundary=edge", 422, "no picture"),
        (b"--edge--\r\n", "multipart/form-data; boundary=edge", 422, "no picture"),
        (b"--edge--\r\n", "multipart/form-data", 422, "boundary"),
        (b"rubbish", "multipart/form-data; boundary=edge", 422, "form"),
        (form([])[0], "multipart/form-data; boundary=edge; charset=punycode", 415, "charset"),
        (b"{}", "application/json", 422, "no picture"),
        (b"[]", "application/json", 422, "the body"),
        (b"null", "application/json", 422, "the body"),
        (b"{", "application/json", 422, "no JSON"),
        (b"\xff\xfe", "application/json", 422, "no JSON"),
        (b"[" * 100_000, "application/json", 422, "no JSON"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "Content-Type"),
        (b"{}", "text/html", 415, "Content-Type"),
    ],
)
def test_a_body_that_holds_no_request(server: Running, body: bytes, kind: str, status: int, says: str) -> None:
    found, answer = server.post("/predict", body, Content_Type=kind)
    assert found == status and says in answer["error"]["message"]


DATA = base64.b64encode(picture()).decode()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"images": "a"}, "images.0"),
        ({"images": [7]}, "images"),
        ({"images": ["%%"]}, "images.0"),
        ({"images": ["data:image/png,abc"]}, "images.0"),
        ({"images": [{"name": "a"}]}, "images"),
        ({"images": [DATA] * 65}, "images"),
        ({"labels": 7}, "labels"),
        ({"labels": []}, "labels"),
        ({"labels": ["a", "a"]}, "labels"),
        ({"labels": ["\ud800"]}, "labels"),
        ({"labels": ["x"] * 10_001}, "labels"),
        ({"labels": ["x" * 1001]}, "labels"),
        ({"labels": [f"{n} y" for n in range(10_000)], "prompts": "openai-imagenet-80"}, "labels"),
        ({"labels": ["a"], "template": ["{}"] * 10_001}, "template"),
        ({"labels": ["a"], "template": ["none"]}, "template"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": "many"}, "top_k"),
        ({"threshold": float("nan")}, "threshold"),
        ({"threshold": float("inf")}, "threshold"),
        ({"threshold": {}}, "threshold"),
        ({"score": "best"}, "score"),
        ({"prompts": "/etc/passwd"}, "prompts"),
        ({"prompts": "../prompts/default"}, "prompts"),
        ({"multi_label": "perhaps"}, "multi_label"),
        ({"nosuch": 1}, "nosuch"),
        ({"\ud800": 1}, None),
        ({"a\nb\x1b[2J": 1}, None),
    ],
)
def test_a_field_that_cant_be_used(server: Running, fields: dict[str, Any], param: str | None) -> None:
    status, answer = server.post("/predict", {"images": [DATA], "labels": LABELS} | fields)
    assert status == 422, answer
    assert param is None or answer["error"]["param"] == param
    assert len(answer["error"]["message"]) < 600


def test_values_nested_as_deep_as_json_allows_are_named_in_an_error(server: Running) -> None:
    for depth in (100, 500, 900):
        status, answer = server.post("/predict", b'{"labels": ' + b"[" * depth + b"]" * depth + b"}")
        assert status == 422, answer


def test_json_of_very_many_values_is_refused_before_it_takes_memory(server: Running) -> None:
    for count, status in ((200_000, 422), (260_000, 413)):
        body = b'{"images": [' + b"0," * count + b"0]}"
        found, answer = server.post("/predict", body)
        assert found == status and len(answer["error"]["message"]) < 200


def test_many_fields_in_the_address_take_no_time(server: Running) -> None:
    fields = "&".join(f"a{n}" for n in range(8000))
    began = time.monotonic()
    status, _ = server.post(f"/predict?{fields}", b"", Content_Type="application/json")
    assert status == 422 and time.monotonic() - began < 2


# ---------------------------------------------------------------------------------------------- sizes and times


def test_a_body_over_the_limit(server: Running, cat: list[tuple[str, bytes]]) -> None:
    for kind in ("application/octet-stream", "application/json", "multipart/form-data; boundary=edge"):
        body = form([("a.png", b"x" * (2**20 + 1))])[0]
        status, answer = server.post("/predict", body, Content_Type=kind)
        assert status == 413 and "1,048,576 bytes" in answer["error"]["message"]
        connection = server.connect()
        chunks = iter([body[:1000], *([b"y" * 65536] * 20)])
        connection.request("POST", "/predict", chunks, {"Content-Type": kind}, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()
    require_answer(server)


def test_bytes_held_over_the_limit_are_refused_for_now(server: Running) -> None:
    most = 2**20 - 100
    with ThreadPoolExecutor() as pool:
        connections = [socket.create_connection((server.host, server.port)) for _ in range(2)]
        for connection in connections:  # two bodies are nearly there
            connection.sendall(post(b"x" * most, kind="image/png", length=most + 10))
        time.sleep(0.3)
        status, headers, _ = pool.submit(
            server.ask, "POST", "/predict", b"x" * 10_000, {"Content-Type": "image/png"}
        ).result()
        assert status == 503 and headers["retry-after"] == "1"
        for connection in connections:
            connection.close()
    time.sleep(0.2)
    require_answer(server)


def test_a_slow_upload_and_a_slow_head_end(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "UPLOAD_SECONDS", 0.15)
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.2)
    answer = raw(server, post(b"x", length=100))
    assert b" 408 " in answer and b"within 0.15 seconds" in answer
    assert raw(server, b"GET /health HTTP/1.1\r\nHost:") == b""
    # nor does what trickles in hold a connection, before a head's end or in a body that nobody wants
    for start in (b"GET /health HTTP/1.1\r\nA:", post(b"", path="/nosuch", length=10_000)):
        with socket.create_connection((server.host, server.port), timeout=5) as connection:
            connection.sendall(start)
            began = time.monotonic()
            with pytest.raises(OSError):
                while time.monotonic() - began < 4:
                    connection.sendall(b"x")
                    time.sleep(0.05)
            assert time.monotonic() - began < 4


def test_a_client_that_takes_no_answer_is_left(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HEAD_SECONDS", 0.3)
    make_texts_quick(server, monkeypatch)
    body = json.dumps({"texts": [f"text {n}" for n in range(9_000)]}).encode()
    began = time.monotonic()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((server.host, server.port))
        connection.sendall(post(body, path="/embed"))
        while not (said := connection.recv(10, socket.MSG_PEEK)):
            assert time.monotonic() - began < 20
        assert said.startswith(b"HTTP/1.1 ")
        time.sleep(1.2)
        connection.settimeout(5)
        head, _, sent = until_closed(connection).partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        assert length is not None and len(sent) < int(length[1])
    require_answer(server)


def test_a_flood_of_headers_ends_the_connection(server: Running) -> None:
    flood = b"".join(b"X-%d: y\r\n" % n for n in range(20_000))
    assert re.match(rb"(HTTP/1.1 4(00|31) |$)", raw(server, b"GET /health HTTP/1.1\r\nHost: x\r\n" + flood))
    require_answer(server)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
        b"GET / HTTP/9\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: close\r\n\r\n0\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /predict/ HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: [\r\nUpgrade: websocket\r\nConnection: upgrade, close\r\n\r\n",
    ],
)
def test_what_is_no_request_of_http(server: Running, sent: bytes) -> None:
    assert re.match(rb"HTTP/1.1 (200|4\d\d) ", raw(server, sent))
    require_answer(server)


def test_requests_in_one_piece_are_answered_in_order(server: Running) -> None:
    def named(name: str, end: bytes = b"") -> bytes:
        body, kind = form([(name, picture())], label=LABELS)
        return post(body, kind=kind).replace(b"\r\n\r\n", end + b"\r\n\r\n", 1)

    said = raw(server, named("1.png") + named("2.png") + named("3.png", b"\r\nConnection: close"))
    assert re.findall(rb'"path":"(\d).png"', said) == [b"1", b"2", b"3"] and said.count(b"HTTP/1.1 200") == 3


def test_connections_that_never_finish_keep_nobody_waiting(server: Running) -> None:
    body, kind = form([("a.png", picture())], label=LABELS)
    whole = post(body, kind=kind)
    starts = [b"", whole[:20], whole[: whole.index(b"\r\n\r\n") + 4], whole[:-5]]
    connections = [socket.create_connection((server.host, server.port)) for _ in range(200)]
    try:
        for place, connection in enumerate(connections):
            connection.sendall(starts[place % 4])
        for _ in range(3):
            require_answer(server)
    finally:
        for connection in connections:
            connection.close()
    require_answer(server)


def test_clients_that_hang_up_leave_nothing(server: Running) -> None:
    body, kind = form([("a.png", picture())], label=LABELS)
    whole = post(body, kind=kind)
    for place in range(60):
        connection = socket.create_connection((server.host, server.port))
        connection.sendall(whole if place % 3 else whole[: 40 + place * 10])
        if place % 2:  # with a reset
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
    require_answer(server)
    wait_until_idle(server)


def wait_until_idle(server: Running) -> None:
    deadline = time.monotonic() + 10
    while server.service.waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------- labels, queue


def test_many_new_labels_keep_nobody_waiting(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, slow = server.service.session.encoder, threading.Event()
    encode = encoder.encode_text

    def wait_for_others(texts: list[str]) -> Any:
        if any("many" in text for text in texts):
            assert slow.wait(30)
        return encode(texts)

    monkeypatch.setattr(encoder, "encode_text", wait_for_others)
    monkeypatch.setattr(service, "_FEW_PROMPTS", 20)
    require_answer(server)

    def ask_many(number: int) -> int:
        labels = [f"many {number} {n}" for n in range(21)]
        return server.post("/predict", {"images": [DATA], "labels": labels})[0]

    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask_many, number) for number in range(8)]
        try:
            time.sleep(0.3)
            require_answer(server)  # with labels that are known
            status, _ = server.upload("/predict", [("a.png", picture())], label=["quite", "new"])
            assert status == 200 and not any(answer.done() for answer in asked)
        finally:
            slow.set()
        assert [answer.result() for answer in asked] == [200] * 8


def make_texts_quick(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have features of texts made up, since the model's own take seconds."""
    features = np.random.default_rng(3).normal(size=(100, server.service.session.facts.embed_dim))
    features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
    monkeypatch.setattr(server.service.session.encoder, "encode_text", lambda texts: features[: len(texts)])


def test_ten_thousand_labels(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    make_texts_quick(server, monkeypatch)
    with ThreadPoolExecutor(1) as pool:
        body = {"images": [DATA], "labels": [f"label {n}" for n in range(10_000)], "template": "{}", "top_k": 10_000}
        asked = pool.submit(server.post, "/predict", body)
        while not asked.done():
            require_answer(server)
    status, answer = asked.result()
    assert status == 200 and len(answer["predictions"][0]["top"]) == 10_000


def test_label_sets_are_forgotten_in_time(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifiers, "MOST_LABELS", 40)
    with served(tiny_model) as server:
        for number in range(8):
            require_answer(server)  # the labels that are asked for again and again stay
            server.upload("/predict", [("a.png", picture())], label=[f"a{number}", f"b{number}"])
        store = server.service._classifiers
        kept = [made.result() for made in store._kept.values()]
        assert store._total == sum(ready.size for ready in kept) <= 40
        assert [len(ready.classifier.labels) for ready in kept] == [2, 3, 2]


def test_labels_of_many_requests_at_once_get_their_own_features(server: Running) -> None:
    encoder = server.service.session.encoder
    texts = [" ".join([f"w{n}"] * (1 + n % 12)) for n in range(60)]  # of several lengths
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: encoder.encode_text([text])[0], texts))
    assert np.abs(np.stack(found) - np.concatenate([encoder.encode_text([text]) for text in texts])).max() < 1e-5


# as many threads as there are cores read and compute, others do one of both
@pytest.mark.parametrize("workers", [1, 2])
def test_requests_take_turns_and_each_picture_is_answered(
    tiny_model: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, others_answered = batcher.ImageReader.read, threading.Event()

    def read_slowly(self: batcher.ImageReader, image: Any) -> Any:
        if image.path.startswith("slow"):
            others_answered.wait(0.1)
        return read(self, image)

    monkeypatch.setattr(batcher.ImageReader, "read", read_slowly)
    with (
        served(tiny_model, execution=Execution(workers=workers, batch_size=4)) as server,
        ThreadPoolExecutor(12) as pool,
    ):
        require_answer(server)  # its labels are known from now on
        slow = pool.submit(server.upload, "/predict", [(f"slow{n}.png", picture()) for n in range(60)], label=LABELS)
        time.sleep(0.2)
        require_answer(server)
        assert not slow.done()
        others_answered.set()

        def ask(number: int) -> bool:
            files = [(f"{number}-{n}.png", b"bad" if n % 3 == 2 else picture()) for n in range(1 + number % 7)]
            status, answer = server.upload("/predict", files, label=LABELS)
            rows = answer["predictions"]
            return status == 200 and [(row["path"], row["error"] is None) for row in rows] == [
                (name, data != b"bad") for name, data in files
            ]

        assert all(pool.map(ask, range(100)))
        assert slow.result()[0] == 200
        wait_until_idle(server)


def test_a_full_queue(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tiny_model, ServiceSettings(most_waiting=3)) as server:
        encoder, go_on = server.service.session.encoder, threading.Event()
        encode = encoder.encode_image

        def wait(pixels: Any) -> Any:
            assert go_on.wait(30)
            return encode(pixels)

        monkeypatch.setattr(server.service._batcher._batches, "_encode", wait)  # type: ignore[union-attr]
        ask = partial(server.upload, "/predict", [("a.png", picture()), ("b.png", picture())], label=LABELS)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(ask)
            while server.service.waiting < 2:
                time.sleep(0.01)
            body, kind = form([("a.png", picture()), ("b.png", picture())], label=LABELS)
            status, headers, answer = server.ask("POST", "/predict", body, {"Content-Type": kind})
            assert status == 503 and headers["retry-after"] == "1" and answer["error"]["type"] == "overloaded_error"
            go_on.set()
            assert first.result()[0] == 200
        assert ask()[0] == 200
        # what never fits isn't told to come again
        status, answer = server.upload("/predict", [("a.png", picture())] * 4, label=LABELS)
        assert (status, answer["error"]["message"]) == (422, "images: 4 pictures; a request may have 3.")
        assert server.ask("GET", "/models")[2]["max_pictures"] == 3


# ---------------------------------------------------------------------------------------------- faults within


@pytest.mark.parametrize("raised", [RuntimeError("in\nside"), SystemExit(3), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("where", ["read", "encode", "answer"])
def test_a_fault_in_a_thread_ends_one_request(
    server: Running, where: str, raised: BaseException, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise raised

    with monkeypatch.context() as patch:
        if where == "read":
            patch.setattr(batcher.ImageReader, "read", fail)
        elif where == "encode":
            patch.setattr(server.service._batcher._batches, "_encode", fail)  # type: ignore[union-attr]
        else:
            patch.setattr("clipcls.predict.classifier.Classifier.answer", fail)
        status, answer = server.upload("/predict", [("a.png", picture()), ("b.png", picture())], label=LABELS)
    assert status == (503 if isinstance(raised, MemoryError) else 500)
    assert "inside" not in json.dumps(answer) and "in\\nside" not in json.dumps(answer)
    assert not any("\n" in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
    require_answer(server)
    wait_until_idle(server)


def test_out_of_memory_goes_on_with_smaller_batches(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(tiny_model) as server:
        encode, sizes = server.service.session.encoder.encode_image, []

        def small_ones(pixels: Any) -> Any:
            if len(pixels) > 2:
                raise OutOfMemoryError("too many")
            sizes.append(len(pixels))
            return encode(pixels)

        monkeypatch.setattr(server.service._batcher._batches, "_encode", small_ones)  # type: ignore[union-attr]
        files = [(f"{n}.png", picture()) for n in range(16)]
        status, answer = server.upload("/predict", files, label=LABELS)
        assert status == 200 and [row["path"] for row in answer["predictions"]] == [name for name, _ in files]
        assert sum(sizes) == 16

        def nothing_fits(_: Any) -> Any:
            raise OutOfMemoryError("too many")

        monkeypatch.setattr(server.service._batcher._batches, "_encode", nothing_fits)  # type: ignore[union-attr]
        assert server.upload("/predict", files[:1], label=LABELS)[0] == 503


# ---------------------------------------------------------------------------------------------- keys, files, addresses


def test_the_key_is_required_as_it_is(tiny_model: Path) -> None:
    with served(tiny_model, app_settings={"api_key": "secret-1"}) as server:
        for wrong in ("secret-2", "secret-11", "secret", "", "SECRET-1", "secret-1\u00e9"):
            status, headers, _ = server.ask("GET", "/models", headers={"Authorization": f"Bearer {wrong}"})
            assert status == 401 and headers["www-authenticate"] == "Bearer"
        for wrong in ("secret-1", "Basic secret-1", "Bearersecret-1"):
            assert server.ask("GET", "/models", headers={"Authorization": wrong})[0] == 401
        for method, path in [
            ("GET", "/models"),
            ("GET", "/metrics"),
            ("POST", "/predict"),
            ("POST", "/"),
            ("GET", "//"),
        ]:
            assert server.ask(method, path)[0] == 401
        for path in ("/", "/health", "/ready", "/docs", "/openapi.json"):
            assert server.ask("GET", path)[0] == 200
        for scheme in ("Bearer", "bearer", "BEARER"):
            assert server.ask("GET", "/models", headers={"Authorization": f"{scheme} secret-1"})[0] == 200
        assert not any("secret" in line for line in server.lines)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a\u202eb\x07.png", "<img src=x>.png", "-", "日本.png"]
)
def test_names_of_files_are_names_alone(server: Running, name: str) -> None:
    status, answer = server.upload("/predict", [(name, picture())], label=LABELS)
    assert status == 200 and answer["predictions"][0]["path"] == name
    status, answer = server.upload("/predict", [(name, b"nothing")], label=LABELS)
    assert status == 415 and answer["error"]["message"].isprintable()
    body = {"images": [{"name": name, "data": DATA}], "labels": LABELS}
    assert server.post("/predict", body)[1]["predictions"][0]["path"] == name


def test_no_file_of_this_machine_can_be_read(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("labels.txt").write_text("sesame\nopen\n")
    Path("a.png").write_bytes(picture())
    with served(tiny_model) as server:
        for labels in ("labels.txt", "./labels.txt", "@labels.txt", str(tmp_path / "labels.txt")):
            status, answer = server.post("/predict", {"images": [DATA], "labels": [labels, "b"], "top_k": 2})
            assert status != 200 or {entry["label"] for entry in answer["predictions"][0]["top"]} == {labels, "b"}
        for image in ("a.png", "./a.png", str(tmp_path / "a.png"), f"file://{tmp_path}/a.png", "s3://a/b.png"):
            assert server.post("/predict", {"images": [image], "labels": LABELS})[0] == 422
            assert server.post("/", {"inputs": image, "parameters": {"candidate_labels": LABELS}})[0] == 422
        for prompts in ("labels.txt", "./labels.txt", str(tmp_path / "labels.txt"), "default.yaml"):
            assert server.post("/predict", {"images": [DATA], "labels": LABELS, "prompts": prompts})[0] == 422
        status, answer = server.post("/v1/embeddings", {"input": "./a.png"})
        text = server.service.session.encoder.encode_text(["./a.png"])[0]
        assert status == 200 and np.abs(np.array(answer["data"][0]["embedding"]) - text).max() < 1e-5
        for path in ("/../labels.txt", "/labels.txt", "//etc/passwd", "/%2e%2e/labels.txt", "/static/../../labels.txt"):
            assert server.ask("GET", path)[0] == 404


@contextmanager
def picture_site() -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = picture()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{site.server_port}/a.png"
        finally:
            site.shutdown()
            thread.join()


def test_addresses_are_fetched_only_where_that_is_allowed(tiny_model: Path) -> None:
    spec = ModelSpec(str(tiny_model), device="cpu", precision="fp32")
    private = (
        "http://127.0.0.1:1/",
        "http://[::1]/",
        "http://169.254.169.254/latest",
        "http://0x7f.1/",
        "http://10.0.0.1/",
    )
    with picture_site() as address:
        for web, status in ((None, 422), (Web(), 422), (Web(allow_private=True), 200)):
            with served(Session(spec, Execution(web=web))) as server:
                found, answer = server.post("/predict", {"images": [address], "labels": LABELS})
                assert found == status, answer
                if status == 200:
                    named = {"images": [{"name": "a.png", "data": address}], "labels": LABELS}
                    rows = [*answer["predictions"], *server.post("/predict", named)[1]["predictions"]]
                    assert [row["path"] for row in rows] == [address, "a.png"]
                elif web is None:
                    assert "--allow-urls" in answer["error"]["message"]
                else:
                    for other in private:
                        assert server.post("/predict", {"images": [other], "labels": LABELS})[0] == 422
                    fields = {"inputs": address, "parameters": {"candidate_labels": LABELS}}
                    assert server.post("/", fields)[0] == 422
                    assert server.post("/v1/embeddings", {"input": [address]})[0] == 422


def test_what_is_fetched_is_limited(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = ModelSpec(str(tiny_model), device="cpu", precision="fp32")
    with picture_site() as address, served(Session(spec, Execution(web=Web(allow_private=True)))) as server:
        body = {"images": [address] * 5, "labels": LABELS}
        with monkeypatch.context() as patch:
            patch.setattr(service, "_MOST_HELD_BYTES", 200)
            assert server.post("/predict", body)[0] == 503
            patch.setattr(service, "_MOST_FETCHED_BYTES", 10)
            assert server.post("/predict", body | {"images": [address]})[0] == 422
        status, answer = server.post("/predict", body)
        assert status == 200 and not any(row["error"] for row in answer["predictions"])


# ---------------------------------------------------------------------------------------------- log


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_line_of_the_log_is_one_line(tiny_model: Path, log_format: str) -> None:
    with served(tiny_model, app_settings={"log_format": log_format}) as server:
        for target in ("/a%0ab%0dc%1b%5b2J%c2%85%e2%80%a8", "/" + "x" * 5000, "/%00%ff"):
            # a proxy of this machine may pass on what its client said
            head = f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n".encode()
            assert b" 404 " in raw(server, head + b"X-Forwarded-For: 1.2.3.4\x1b[2J\x85evil\r\n\r\n")
        assert b" 404 " in raw(server, b"A" * 5000 + b" /x HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        server.upload("/predict", [("a\u2028.png", picture())], label=LABELS)
        time.sleep(0.1)
    assert len(server.lines) == 5
    for line in server.lines:
        assert line.isprintable() and len(line) < 700
        if log_format == "json":
            assert {"time", "client", "method", "path", "status", "ms", "pictures"} <= set(json.loads(line))
