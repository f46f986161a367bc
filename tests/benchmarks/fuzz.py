"""Damaged images of every format through clipcls's decoder: no crash, no hang, no error but an `ImageError`.

    nice python tests/benchmarks/fuzz.py --count 20000 --seed 0 --format jpeg,png --keep offenders

Valid images (those of `tests/pictures.py`, `tests/awkward.py` and `examples/images`) are changed at random: flipped
bits, cuts, splices, repeated and dropped parts, lengths and sizes of other values, PNG chunks with their checksums
mended. Each mutant is decoded and fitted in both decode modes, in a worker process that may take so much memory and no
more, and whose standard error is watched. A mutant that kills its worker, takes too long, prints, or raises what it
shouldn't is an offender; they are saved. The same seed makes the same mutants. Exits with 1 if there are any offenders.
"""

import argparse
import contextlib
import io
import os
import re
import resource
import struct
import sys
import threading
import time
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

TESTS = Path(__file__).parent.parent
EXAMPLES = TESTS.parent / "examples" / "images"
sys.path[:0] = [str(TESTS)]

import awkward  # noqa: E402
import pictures  # noqa: E402

MAX_PIXELS = 2**24  # of which float64 takes 128 MiB
DECODES = ("fast", "exact")

Decoder = Callable[[bytes, str], "np.ndarray[Any, Any]"]
Mutation = Callable[[bytearray, np.random.Generator, bytes], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a decode may take.

    Attributes:
        seconds: of the processor's time, for one decode.
        hang: seconds by the clock after which a worker is ended.
        memory: MiB of address space, beyond what a worker has before its first decode.
    """

    seconds: float = 5.0
    hang: float = 30.0
    memory: int = 1024


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a mutant.

    Attributes:
        shown: in how many of the decode modes it gave pixels.
        slowest: seconds of the processor's time, of the slower decode.
        peak: MiB that the worker held at most, beyond what it had before its first decode.
    """

    offences: tuple[str, ...] = ()
    shown: int = 0
    slowest: float = 0.0
    peak: float = 0.0


@dataclass(slots=True)
class Tally:
    """Verdicts of one format."""

    mutants: int = 0
    shown: int = 0
    slowest: float = 0.0
    peak: float = 0.0
    offences: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        """Count one mutant."""
        self.mutants += 1
        self.shown += verdict.shown == len(DECODES)
        self.slowest = max(self.slowest, verdict.slowest)
        self.peak = max(self.peak, verdict.peak)
        self.offences.update(verdict.offences)


# ------------------------------------------------------------------------------------------- mutants


def seeds() -> dict[str, list[bytes]]:
    """Valid images by format; HEIC where pillow-heif is installed."""
    found: dict[str, list[bytes]] = defaultdict(list)
    made = [picture.data for picture in (pictures.good_pictures() | awkward.good_pictures()).values()]
    drawn = [path.read_bytes() for path in sorted(EXAMPLES.iterdir()) if path.suffix != ".txt"]
    for data in made + drawn:
        with warnings.catch_warnings(), contextlib.suppress(ValueError):  # a text that Pillow doesn't unpack
            warnings.simplefilter("ignore")
            kind = (Image.open(io.BytesIO(data)).format or "").lower()
            found["jpeg" if kind == "mpo" else kind].append(data)
    with contextlib.suppress(ImportError):
        found["heic"] = [picture.data for picture in awkward.heics().values()]
    return dict(found)


def _flip_bits(data: bytearray, random: np.random.Generator, other: bytes) -> None:
    for _ in range(int(random.integers(1, 9))):
        data[_place(data, random)] ^= 1 << int(random.integers(8))


def _set_byte(data: bytearray, random: np.random.Generator, other: bytes) -> None:
    data[_place(data, random)] = int(random.integers(256))


def _set_number(data: bytearray, random: np.random.Generator, other: bytes) -> None:
    """A size, a length, an offset: the ends of what it can be, or a little more or less than it is."""
    kind = str(random.choice([">H", "<H", ">I", "<I", "<Q"]))
    width = struct.calcsize(kind)
    at = min(_place(data, random), len(data) - width)
    if at < 0:
        return
    (now,) = struct.unpack_from(kind, data, at)
    most = 256**width - 1
    ends = [0, 1, most, most // 2, most // 2 + 1, 0x4000, 0xFFFF, 30_000, len(data)]
    value = int(random.choice(ends)) if random.random() < 0.6 else now + int(random.integers(-4, 5))
    struct.pack_into(kind, data, at, value & most)


def _cut(data: bytearray, random: np.random.Generator, other: bytes) -> None:
    del data[int(random.integers(1, len(data) + 1)) :]


def _drop(data: bytearray, random: np.random.Generator, other: bytes) -> None:
    start = _place(data, random)
    del data[start : start + int(random.integers(1, 64))]


def _repeat(data: bytearray, random: np.random.Generator, other: bytes) -> None:
    start = _place(data, random)
    part = bytes(data[start : start + int(random.integers(1, 400))])
    data[start:start] = part * int(random.integers(1, 9))


def _insert_noise(data: bytearray, random: np.random.Generator, other: bytes) -> None:
    at = _place(data, random)
    data[at:at] = random.bytes(int(random.integers(1, 40)))


def _splice(data: bytearray, random: np.random.Generator, other: bytes) -> None:
    """The rest of another image of the same format, or a part of it."""
    at, start = _place(data, random), int(random.integers(len(other)))
    if random.random() < 0.5:
        data[at:] = other[start:]
    else:
        part = other[start : start + int(random.integers(1, 400))]
        data[at : at + len(part)] = part


_MUTATIONS: tuple[Mutation, ...] = (
    *(_flip_bits, _set_byte, _set_number, _set_number, _set_number, _cut, _drop, _repeat, _insert_noise, _splice),
)


def _place(data: bytearray, random: np.random.Generator) -> int:
    """Anywhere in the file, half of the time among its first bytes, where headers are."""
    end = min(len(data), 160) if random.random() < 0.5 else len(data)
    return int(random.integers(end))


def mutant(images: Sequence[bytes], seed: int, kind: str, index: int) -> bytes:
    """One changed image; the same for the same arguments."""
    random = np.random.default_rng([seed, zlib.crc32(kind.encode()), index])
    data = bytearray(images[int(random.integers(len(images)))])
    other = images[int(random.integers(len(images)))]
    for _ in range(int(random.geometric(0.5))):
        _MUTATIONS[int(random.integers(len(_MUTATIONS)))](data, random, other)
        if not data:
            break
    return with_checksums(bytes(data)) if kind == "png" and random.random() < 0.7 else bytes(data)


def with_checksums(data: bytes) -> bytes:
    """A PNG with the checksums that its chunks should have, so that a reader looks at what they hold."""
    changed, at = bytearray(data), 8
    while at + 12 <= len(changed):
        end = at + 8 + int.from_bytes(changed[at : at + 4], "big")
        if end + 4 > len(changed):
            break
        struct.pack_into(">I", changed, end, zlib.crc32(changed[at + 4 : end]))
        at = end + 4
    return bytes(changed)


# ------------------------------------------------------------------------------------------- workers


def decode(data: bytes, mode: str) -> "np.ndarray[Any, Any]":
    """As `clipcls predict` reads a file."""
    from clipcls.images.decoding import decode_picture
    from clipcls.images.fit import fit
    from clipcls.records import Preprocessing

    preprocessing = Preprocessing((64, 64), (0.5,) * 3, (0.5,) * 3)
    picture = decode_picture(data, preprocessing, mode, MAX_PIXELS)  # type: ignore[arg-type]
    return fit(picture, preprocessing, mode)  # type: ignore[arg-type]


def judge(data: bytes, decoder: Decoder, printed: int, limits: Limits) -> Verdict:
    """Decode in both modes; `printed` is the file that standard output and error go to."""
    offences: list[str] = []
    shown, slowest, before = 0, 0.0, os.fstat(printed).st_size
    for mode in DECODES:
        start = time.process_time()
        offence = _offence_of(data, decoder, mode)
        shown += offence is None
        if offence:
            offences.append(offence)
        slowest = max(slowest, time.process_time() - start)
    if slowest > limits.seconds:
        offences.append("slow")
    if os.fstat(printed).st_size > before:
        offences.append("printed " + os.pread(printed, 200, before).decode(errors="replace").split("\n")[0])
    return Verdict(tuple(offences), shown, slowest)


def _offence_of(data: bytes, decoder: Decoder, mode: str) -> str | None:
    """What is wrong with how a mutant is read; empty if it is refused as it should be, None if it is read."""
    from clipcls.errors import ImageError

    try:
        pixels = decoder(data, mode)
    except ImageError as exc:
        if "not enough memory" in str(exc):
            return "more memory than it may take"
        return f"says {exc}" if awkward.INTERNALS.search(str(exc)) else ""
    except Exception as exc:  # noqa: BLE001, which is what is looked for
        return f"raises {type(exc).__name__}"
    return None if pixels.shape == (64, 64, 3) and pixels.dtype == np.uint8 else f"gives {pixels.shape}"


def work(connection: Connection, decoder: Decoder, limits: Limits) -> None:
    """In a worker: answer each mutant with a verdict, until there are no more."""
    import torch

    import clipcls.images.fit  # noqa: F401, before memory is measured

    torch.set_num_threads(1)
    printed = os.memfd_create("printed")
    for stream in (1, 2):
        os.dup2(printed, stream)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    decoder(pictures.jpeg(pictures.scene()), "fast")
    held = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    most = held + limits.memory * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    _forget_peak()
    before = _peak()
    connection.send("ready")
    while data := connection.recv_bytes():
        _forget_peak()
        verdict = judge(data, decoder, printed, limits)
        connection.send(Verdict(verdict.offences, verdict.shown, verdict.slowest, _peak() - before))


def _forget_peak() -> None:
    with contextlib.suppress(OSError):  # where it isn't allowed, the peak is the worker's of all times
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """MiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


class Worker:
    """A process that decodes mutants, and is replaced when one of them ends it."""

    def __init__(self, decoder: Decoder, limits: Limits) -> None:
        self._decoder = decoder
        self._limits = limits
        self._context = get_context("forkserver")
        self._context.set_forkserver_preload(["clipcls.images.fit"])
        self._start()

    def _start(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=work, args=(theirs, self._decoder, self._limits), daemon=True)
        self._process.start()
        theirs.close()
        self._connection.recv()  # it is ready

    def verdict(self, data: bytes) -> Verdict:
        """What comes of a mutant, its worker's end included."""
        start = time.perf_counter()
        try:
            self._connection.send_bytes(data or b"\0")
            if self._connection.poll(self._limits.hang):
                return self._connection.recv()  # type: ignore[no-any-return]
            offence = "hangs"
        except (EOFError, BrokenPipeError, ConnectionResetError):
            self._process.join(5)
            offence = f"ends the process with {self._process.exitcode}"
        self._process.kill()
        self._process.join()
        self._connection.close()
        self._start()
        return Verdict((offence,), 0, time.perf_counter() - start)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):
            self._connection.send_bytes(b"")
        self._process.join(5)
        self._process.kill()
        self._connection.close()


# ------------------------------------------------------------------------------------------- a run


@dataclass(frozen=True, slots=True)
class Offender:
    """A mutant that was not read as it should be."""

    name: str
    data: bytes
    offences: tuple[str, ...]


def fuzz(
    mutants: Iterator[tuple[str, int, bytes]], workers: int = 1, limits: Limits | None = None, decoder: Decoder = decode
) -> tuple[dict[str, Tally], list[Offender]]:
    """Have workers decode mutants, each given with its format and its number."""
    limits = limits or Limits()
    tallies: dict[str, Tally] = defaultdict(Tally)
    offenders: list[Offender] = []
    lock = threading.Lock()

    def lane() -> None:
        worker = Worker(decoder, limits)
        while True:
            with lock:
                kind, index, data = next(mutants, ("", 0, b""))
            if not kind:
                break
            verdict = worker.verdict(data)
            with lock:
                tallies[kind].add(verdict)
                if verdict.offences:
                    offenders.append(Offender(f"{kind}-{index}", data, verdict.offences))
        worker.close()

    lanes = [threading.Thread(target=lane) for _ in range(workers)]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    return dict(tallies), offenders


def all_mutants(kinds: Sequence[str], count: int, seed: int) -> Iterator[tuple[str, int, bytes]]:
    """So many mutants in all, of every format in turn."""
    images = seeds()
    for i in range(count):
        kind = kinds[i % len(kinds)]
        yield kind, i // len(kinds), mutant(images[kind], seed, kind, i // len(kinds))


def table(tallies: dict[str, Tally]) -> str:
    """For people."""
    lines = [
        "| format | mutants | shown | refused | offenders | slowest, s | peak, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, tally in tallies.items():
        offences = sum(tally.offences.values())
        lines.append(
            f"| {kind} | {tally.mutants:,} | {tally.shown:,} | {tally.mutants - tally.shown:,} | {offences} "
            f"| {tally.slowest:.2f} | {tally.peak:.0f} |"
        )
    return "\n".join(lines)


def _save(offenders: Sequence[Offender], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for offender in offenders:
        (folder / offender.name).write_bytes(offender.data)


def main() -> int:
    """Parse the command line, and fuzz."""
    kinds = sorted(seeds())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000, help="mutants in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", default=",".join(kinds), help="of %(default)s")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="of the processor's time that a decode may take")
    parser.add_argument("--memory", type=int, default=1024, help="MiB that decoding may take")
    parser.add_argument("--keep", type=Path, default=Path("offenders"), help="folder for offenders")
    options = parser.parse_args()
    chosen = re.split(r"[,\s]+", options.format.strip(", "))
    if unknown := set(chosen) - set(kinds):
        parser.error(f"no images of {', '.join(sorted(unknown))}; there are {', '.join(kinds)}")
    start = time.perf_counter()
    limits = Limits(options.seconds, memory=options.memory)
    tallies, offenders = fuzz(all_mutants(chosen, options.count, options.seed), options.workers, limits)
    print(table(tallies))
    print(f"\n{options.count:,} mutants in {time.perf_counter() - start:.0f} s, {len(offenders)} offenders")
    if offenders:
        _save(offenders, options.keep)
        for offence, times in Counter(offence for one in offenders for offence in one.offences).most_common(40):
            example = next(one.name for one in offenders if offence in one.offences)
            print(f"{times} {offence} (such as {options.keep / example})")
    return 1 if offenders else 0


if __name__ == "__main__":
    sys.exit(main())
