"""Load on `clipcls serve` over loopback: latency and pictures a second, memory, and requests that lose their client.

    python tests/benchmarks/serve.py PHOTOS --model everyday --rounds 3
    python tests/benchmarks/serve.py PHOTOS --model pictogram --only memory,faithfulness --output serve.json

Speed: in each round a whole process of `clipcls predict` over the pictures (less what it takes for one of them), then
the server with 1, 16 and 64 clients, each of which asks again once it has its answer, then a bare loop: Starlette with
our own encoder, a picture a call, on Starlette's threads. Server, clients and loop are processes of their own; each
request brings another picture, and nothing is cached. Medians of the rounds. Where other programs run, compare the time
of the cores: whoever has more threads gets more of the cores there.

Memory: many requests with small pictures, half of them with labels that no request had before.

Faithfulness: clients that hang up at random, in the head, in the body or before the answer, among others that wait.
Each that waits has to get its own picture's name and one of its own labels, and the server has to count what was sent.
"""

import argparse
import asyncio
import io
import itertools
import json
import os
import random
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import describe, load
from measuring import in_new_process
from training import Cost, run_process, scratch_folder

LABELS = ("airplane", "bicycle", "bird", "boat", "car", "cat", "chair", "dog", "flower", "horse", "pizza", "truck")
SMALL_PICTURES = 200
NEW_LABELS = 26
AIM = 0.8


@dataclass(frozen=True, slots=True)
class Load:
    """What clients met.

    Attributes:
        seconds: of each request, in order of time.
        per_second: requests answered a second, without the first and the last of each client.
    """

    seconds: tuple[float, ...]
    per_second: float

    def percentile(self, share: float) -> float:
        """In milliseconds."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))] * 1000


# ---- the server, and what else answers


def free_port() -> int:
    """A port that nothing listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


@contextmanager
def running(command: list[str], port: int) -> Iterator[int]:
    """A server as a process of its own, once it is ready; gives its process's number."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=sys.stderr)
    try:
        deadline = time.monotonic() + 300
        while status_of(port) != 200:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server doesn't start: {' '.join(command)}")
            time.sleep(0.1)
        yield process.pid
        if process.poll() is not None:
            raise SystemExit(f"the server ended with {process.returncode}: {' '.join(command)}")
    finally:
        if process.poll() is not None:
            print(f"the server ended with {process.returncode}: {' '.join(command)}", file=sys.stderr)
        process.terminate()
        process.wait(60)


def status_of(port: int) -> int | None:
    """The status of /ready; None where nothing answers."""
    try:
        return int(get(port, "/ready").split(b" ", 2)[1])
    except OSError:
        return None


def get(port: int, path: str) -> bytes:
    """An answer with its head."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: connection.recv(65536), b""))


def serve_command(model: str, port: int, options: list[str]) -> list[str]:
    """`clipcls serve` without a cache and without a line a request."""
    common = ["--model", model, "--port", str(port), "--labels", ",".join(LABELS), "--no-cache", "-q"]
    return [sys.executable, "-m", "clipcls", "serve", *common, *options]


def serve_bare(model: str, port: int) -> None:
    """Answer a picture a call with the same decoding and encoder, and no batches."""
    import numpy as np
    import uvicorn
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Route

    from clipcls.embed.execution import Execution
    from clipcls.embed.session import Session
    from clipcls.images.fit import load_pixels
    from clipcls.records import ModelSpec

    with Session(ModelSpec(model), Execution()) as session:
        encoder, execution, facts = session.encoder, session.execution, session.facts
        text_features = encoder.encode_text([f"a photo of a {label}" for label in LABELS])
        encoder.build_image_tower()

        def classify(data: bytes) -> dict[str, float]:
            pixels = load_pixels(data, facts.preprocess, execution.decode, execution.max_pixels)
            logits = 100 * encoder.encode_image([pixels]) @ text_features.T
            scores = np.exp(logits - logits.max())
            return dict(zip(LABELS, (scores / scores.sum())[0].tolist(), strict=True))

        async def predict(request: Request) -> JSONResponse:
            async with request.form() as form:
                file: Any = form["files"]
                data = await file.read()
            return JSONResponse(await run_in_threadpool(classify, data))

        async def ready(_: Request) -> PlainTextResponse:
            return PlainTextResponse("ready")

        app = Starlette(routes=[Route("/predict", predict, methods=["POST"]), Route("/ready", ready)])
        uvicorn.run(app, host="127.0.0.1", port=port, access_log=False, log_level="warning")


# ---- clients


def request_of(name: str, data: bytes, labels: tuple[str, ...] = (), template: str | None = None) -> bytes:
    """An upload to /predict."""
    fields = [*(("label", label) for label in labels), *([] if template is None else [("template", template)])]
    parts = [f'Content-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode() for name, text in fields]
    head = f'Content-Disposition: form-data; name="files"; filename="{name}"\r\nContent-Type: image/jpeg\r\n\r\n'
    parts.append(head.encode() + data + b"\r\n")
    body = b"".join(b"--edge\r\n" + part for part in parts) + b"--edge--\r\n"
    lines = ["POST /predict HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=edge"]
    return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def answer_of(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of an answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head.lower())
    assert length is not None, head
    return int(head.split(b" ", 2)[1]), await reader.readexactly(int(length[1]))


def drive(port: int, clients: int, seconds: float, paths: list[Path]) -> Load:
    """What clients meet that ask one after the other, each for another picture."""
    requests = itertools.cycle([request_of(path.name, path.read_bytes()) for path in paths])
    took: list[float] = []

    async def client(until: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (began := time.perf_counter()) < until:
            writer.write(next(requests))
            status, body = await answer_of(reader)
            assert status == 200, (status, body)
            took.append(time.perf_counter() - began)
        writer.close()

    async def all_of_them() -> float:
        began = time.perf_counter()
        await asyncio.gather(*(client(began + seconds) for _ in range(clients)))
        return time.perf_counter() - began

    elapsed = asyncio.run(all_of_them())
    return Load(tuple(took), len(took) / elapsed)


# ---- speed


def measure_speed(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rounds of predict, the server and the bare loop, in turns."""
    many, one = folder / "many", folder / "one"
    paths = copies(pictures_in(options.pictures), many, options.count)
    copies(paths, one, 1)
    port, bare_port = free_port(), free_port()
    whole: list[Cost] = []
    started: list[Cost] = []
    worked: dict[str, list[float]] = {}
    speeds: dict[str, list[float]] = {}
    loads: dict[str, list[Load]] = {}
    bare = [sys.executable, __file__, "--bare", str(bare_port), "--model", options.model]
    with running(serve_command(options.model, port, []), port) as pid, running(bare, bare_port) as bare_pid:
        for number in range(options.rounds):
            whole.append(predict_cost(many, options.model, folder))
            started.append(predict_cost(one, options.model, folder))
            start = statistics.median(cost.seconds for cost in started)
            speeds["predict"] = [(len(paths) - 1) / (cost.seconds - start) for cost in whole]
            for server, process, where, counts in (
                ("serve", pid, port, options.clients),
                ("bare", bare_pid, bare_port, options.bare_clients),
            ):
                for clients in counts:
                    name = f"{server}, {clients} clients"
                    before = processor_seconds(process)
                    found = in_new_process(drive, where, clients, options.seconds, paths)
                    worked.setdefault(name, []).append((processor_seconds(process) - before) / len(found.seconds))
                    loads.setdefault(name, []).append(found)
                    speeds.setdefault(name, []).append(found.per_second)
            said = ", ".join(f"{name} {values[-1]:.1f}" for name, values in speeds.items())
            print(f"round {number + 1}: {said} pictures/s", file=sys.stderr, flush=True)
        sizes = figures(port, "clipcls_batch_pictures")
    mean = sizes["clipcls_batch_pictures_sum"] / max(1.0, sizes["clipcls_batch_pictures_count"])
    print(f"batches of {mean:.1f} pictures on average", file=sys.stderr)
    start = statistics.median(cost.processor for cost in started)
    worked["predict"] = [(cost.processor - start) / (len(paths) - 1) for cost in whole]
    rows = []
    for name, values in speeds.items():
        shares = [value / base for value, base in zip(values, speeds["predict"], strict=True)]
        row = {"what": name, "pictures/s": statistics.median(values), "of predict": statistics.median(shares)}
        row["core ms/picture"] = statistics.median(worked[name]) * 1000
        for share in (0.5, 0.95, 0.99) if name in loads else ():
            row[f"p{share * 100:.0f} ms"] = statistics.median(found.percentile(share) for found in loads[name])
        rows.append(row | {"rounds": values})
    return rows


def processor_seconds(pid: int) -> float:
    """The time that cores have worked for a process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def predict_cost(folder: Path, model: str, scratch: Path) -> Cost:
    """What a whole process takes."""
    command = [sys.executable, "-m", "clipcls", "predict", str(folder), "--labels", ",".join(LABELS)]
    return run_process([*command, "--model", model, "--no-cache", "-q", "-o", "out.csv"], scratch)


def pictures_in(folder: Path) -> list[Path]:
    """The pictures of a folder and of those in it."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))


def copies(paths: list[Path], folder: Path, count: int) -> list[Path]:
    """As many pictures as asked for, under names of their own."""
    folder.mkdir()
    found = []
    for number, path in enumerate(itertools.islice(itertools.cycle(paths), count)):
        found.append(folder / f"{number:05}{path.suffix.lower()}")
        shutil.copyfile(path, found[-1])
    return found


def figures(port: int, start: str) -> dict[str, float]:
    """What /metrics says, of the figures whose names start so."""
    lines = get(port, "/metrics").decode().splitlines()
    pairs = (line.rpartition(" ") for line in lines if line.startswith(start))
    return {name: float(value) for name, _, value in pairs}


# ---- memory


def small_pictures() -> list[bytes]:
    """JPEGs of a few hundred bytes to some kilobytes."""
    import numpy as np
    from PIL import Image

    found = []
    for number in range(SMALL_PICTURES):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise).resize((40 + number, 60)).save(file, "JPEG")
        found.append(file.getvalue())
    return found


def drive_for_memory(port: int, start: int, count: int, clients: int) -> None:
    """Requests, each second of which has labels that none had before."""
    pictures = small_pictures()
    numbers = iter(range(start, start + count))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            # words that no request had before
            word = "".join(chr(97 + int(digit)) for digit in str(number))
            labels = tuple(f"{word}{chr(97 + place)}" for place in range(NEW_LABELS)) if number % 2 else LABELS
            writer.write(request_of(f"{number}.jpg", pictures[number % SMALL_PICTURES], labels, "a photo of a {}"))
            status, body = await answer_of(reader)
            assert status == 200, (status, body)
        writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    asyncio.run(all_of_them())


def resident(pid: int) -> float:
    """MiB of a process that aren't mapped files."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    (kib,) = re.findall(r"RssAnon:\s+(\d+) kB", status)
    return int(kib) / 1024


def measure_memory(_: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The server's memory after each tenth of the requests."""
    port = free_port()
    step = options.requests // 10
    rows = []
    with running(serve_command(options.model, port, []), port) as pid:
        rows.append({"requests": 0, "MiB": resident(pid)})
        for number in range(10):
            in_new_process(drive_for_memory, port, number * step, step, 16)
            rows.append({"requests": (number + 1) * step, "MiB": resident(pid)})
            print(rows[-1], file=sys.stderr, flush=True)
    return rows


# ---- faithfulness


def drive_unfaithful(port: int, count: int, clients: int, seed: int) -> dict[str, int]:
    """How many requests waited for their answer, and how many were left and where."""
    pictures = small_pictures()
    numbers = iter(range(count))
    rng = random.Random(seed)
    left = {"waited": 0, "in the head": 0, "in the body": 0, "before the answer": 0}

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            labels = (f"one {number}", f"other {number}")
            data = request_of(f"{number}.jpg", pictures[number % SMALL_PICTURES], labels)
            head = data.index(b"\r\n\r\n") + 4
            fate = rng.choice(["waited", "waited", *left])
            left[fate] += 1
            if fate == "waited":
                writer.write(data)
                status, body = await answer_of(reader)
                assert status == 200, (status, body)
                (row,) = json.loads(body)["predictions"]
                assert row["path"] == f"{number}.jpg" and row["label"] in labels, (number, row)
                continue
            ends = {
                "in the head": rng.randrange(1, head - 1),
                "in the body": rng.randrange(head, len(data) - 1),
                "before the answer": len(data),
            }
            writer.write(data[: ends[fate]])
            await writer.drain()
            await asyncio.sleep(rng.choice([0, 0.001, 0.02]))
            if rng.random() < 0.5:
                writer.transport.abort()
            else:
                writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    asyncio.run(all_of_them())
    return left


def measure_faithfulness(_: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """What clients sent beside what the server counted; an assertion fails where they differ."""
    port = free_port()
    with running(serve_command(options.model, port, []), port):
        left = in_new_process(drive_unfaithful, port, options.requests, 32, options.seed)
        time.sleep(2)
        counted = figures(port, 'clipcls_requests_total{path="/predict"')
        waiting = figures(port, "clipcls_waiting_pictures")
        batches = figures(port, "clipcls_batch_pictures_sum")
    by_status = {re.findall(r'status="(\d+)"', name)[0]: int(value) for name, value in counted.items()}
    row = {**left, **{f"status {status}": value for status, value in by_status.items()}}
    row |= {"waiting": int(*waiting.values()), "computed": int(*batches.values())}
    # what was aborted may be gone before the server reads it
    most = left["waited"] + left["in the body"] + left["before the answer"]
    assert set(by_status) <= {"200", "400"} and row["waiting"] == 0, row
    assert left["waited"] <= by_status["200"] <= left["waited"] + left["before the answer"], row
    assert sum(by_status.values()) <= most, row
    assert row["computed"] == by_status["200"], row
    return [row]


# ---- the command


MEASURES: dict[str, Callable[[Path, argparse.Namespace], list[dict[str, Any]]]] = {
    "speed": measure_speed,
    "memory": measure_memory,
    "faithfulness": measure_faithfulness,
}


def table(rows: list[dict[str, Any]]) -> list[str]:
    """A Markdown table."""
    names = list(dict.fromkeys(name for row in rows for name in row if name != "rounds"))
    lines = [names, ["---"] * len(names)]
    for row in rows:
        values = [row.get(name, "") for name in names]
        lines.append([f"{value:.2f}" if isinstance(value, float) else str(value) for value in values])
    return [f"| {' | '.join(line)} |" for line in lines]


def main() -> None:
    """Parse the command line, measure, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, nargs="?", help="folder of pictures")
    parser.add_argument("--model", default="everyday")
    parser.add_argument("--only", default=",".join(MEASURES), help="some of what is measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--count", type=int, default=500, help="pictures of a run of predict, enough for many seconds")
    parser.add_argument("--clients", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--bare-clients", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each load")
    parser.add_argument("--requests", type=int, default=20_000, help="for memory, and for faithfulness")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="JSON with each round")
    parser.add_argument("--bare", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare is not None:
        serve_bare(options.model, options.bare)
        return
    measures = options.only.split(",")
    if "speed" in measures and options.pictures is None:
        parser.error("speed needs a folder of pictures")
    found: dict[str, Any] = {"machine": [*describe(None), load()], "model": options.model}
    print("\n".join(found["machine"]))
    with scratch_folder() as folder:
        for name in measures:
            found[name] = MEASURES[name](folder, options)
            print("", f"{name}, {options.model}:", "", *table(found[name]), sep="\n", flush=True)
    for row in found.get("speed", []):
        if row["what"] == "serve, 64 clients":
            verdict = "reached" if row["of predict"] >= AIM else "missed"
            print(f"\n- 64 clients: {row['of predict']:.2f} of predict (aim {AIM}: {verdict})")
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    os.environ["PYTHONPATH"] = str(Path(__file__).parents[2])
    main()
