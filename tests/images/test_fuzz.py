"""A short run of the fuzzer, and whether it sees what it looks for."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import pictures
from clipcls.errors import ImageError

FUZZ = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(FUZZ.parent)
    return importlib.import_module("fuzz")


def misbehave(data: bytes, mode: str) -> "np.ndarray[Any, Any]":
    """A decoder that does to each file what its content says."""
    if data == b"crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if data == b"hang":
        time.sleep(60)
    if data == b"slow":
        start = time.process_time()
        while time.process_time() < start + 0.3:
            pass
    if data == b"print":
        os.write(2, b"libfoo: warning\n")
    if data == b"raise":
        raise KeyError("key")
    if data == b"tell":
        raise ImageError("damaged PNG: PIL.PngImagePlugin went wrong")
    if data == b"refuse":
        raise ImageError("damaged PNG")
    if data == b"fill":
        try:
            np.ones(2**29, np.uint8)
        except MemoryError as exc:
            raise ImageError("not enough memory to decode it") from exc
    return np.zeros((9 if data == b"shape" else 64, 64, 3), np.uint8)


def test_fuzz_sees_every_offence_and_goes_on(fuzz: ModuleType) -> None:
    words = ["good", "crash", "hang", "slow", "print", "raise", "tell", "refuse", "fill", "shape", "good"]
    mutants = iter([("png", i, word.encode()) for i, word in enumerate(words)])
    tallies, offenders = fuzz.fuzz(mutants, 1, fuzz.Limits(0.2, 6.0, 256), misbehave)
    found = {offender.data.decode(): " ".join(offender.offences) for offender in offenders}
    expected = {
        "crash": f"ends the process with {-signal.SIGSEGV}",
        "hang": "hangs",
        "slow": "slow",
        "print": "printed libfoo: warning",
        "raise": "raises KeyError raises KeyError",
        "tell": "says damaged PNG: PIL.PngImagePlugin went wrong " * 2,
        "fill": "more memory than it may take more memory than it may take",
        "shape": "gives (9, 64, 3) gives (9, 64, 3)",
    }
    assert found == {word: offence.strip() for word, offence in expected.items()}
    assert tallies["png"].mutants == len(words)
    assert tallies["png"].shown == 4  # those that are good, slow or print


def test_mutant_is_the_same_for_the_same_seed(fuzz: ModuleType) -> None:
    images = [pictures.png(pictures.scene()), pictures.png(pictures.grey_scene())]
    first, again, other = ([fuzz.mutant(images, seed, "png", i) for i in range(50)] for seed in (1, 1, 2))
    assert first == again
    assert len({*first, *other, *images}) > 95


def test_with_checksums_mends_a_png(fuzz: ModuleType) -> None:
    data = pictures.png(pictures.scene())
    broken = bytearray(data)
    broken[29:33] = bytes(4)  # of the header
    assert fuzz.with_checksums(bytes(broken)) == data


def test_decoder_withstands_a_short_fuzz(tmp_path: Path) -> None:
    command = [sys.executable, FUZZ, "--count", "600", "--seed", "5", "--keep", tmp_path / "offenders"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "600 mutants" in done.stdout and " 0 offenders" in done.stdout
