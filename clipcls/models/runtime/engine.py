"""Imports OpenVINO, and runs converted towers with it. Imports no torch."""

import contextlib
import ctypes
import errno
import sys
import threading
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clipcls.errors import ModelError, OutOfMemoryError, first_line
from clipcls.records import Precision

#: The most batches that are computed at once on a CPU: more threads would wait for Python's lock.
MOST_STREAMS = 8
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}


@cache
def openvino() -> Any:
    """Return the package, imported without its telemetry, which would send a message at each import.

    Raises:
        ImportError: it isn't installed.
    """
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] # makes its import fail, which is provided for
    import openvino

    return openvino


def is_installed() -> bool:
    """Tell whether OpenVINO is installed, without importing it."""
    return find_spec("openvino") is not None


def release() -> str:
    """Return OpenVINO's version; empty where it isn't installed."""
    try:
        return version("openvino")
    except PackageNotFoundError:
        return ""


def save(model: Any, path: Path, in_fp16: bool = False) -> None:
    """Write a model as an OpenVINO IR, a .xml file with its weights beside it.

    Raises:
        OSError: it can't be written.
    """
    try:
        openvino().save_model(model, str(path), compress_to_fp16=in_fp16)
    except RuntimeError as exc:  # says no more than "iostream error"
        raise OSError(errno.EIO, "it can't be written, as on a full disk") from exc


def cause(exc: BaseException) -> str:
    """Return what an error says on one line; those of OpenVINO begin with places in its source."""
    lines = str(exc).strip().splitlines()
    return lines[-1].lstrip("- ") if lines and lines[0].startswith(("Exception from ", "Check '")) else first_line(exc)


class CompiledTower:
    """A converted tower, compiled for this machine's CPU; several threads may run it at once.

    Args:
        path: of the OpenVINO IR's .xml file.
        threads: threads that compute, shared by the streams.
        streams: the number of batches that are computed at once.

    Raises:
        ModelError: it can't be read or compiled.
    """

    def __init__(self, path: Path, precision: Precision, threads: int, streams: int) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
            # several processes on one machine would share the same few cores
            "ENABLE_CPU_PINNING": False,
        }
        with translated_errors(f"{path}: OpenVINO can't compile it"), _signal_stack_kept():
            self._compiled = openvino().Core().compile_model(str(path), "CPU", settings)
        self._own = threading.local()

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Return the tower's features of a batch, (n, embed_dim) float32, L2-normalised.

        Raises:
            OutOfMemoryError: the memory doesn't hold so many at once.
            ModelError: they aren't numbers.
        """
        if not hasattr(self._own, "request"):
            self._own.request = self._compiled.create_infer_request()
        with translated_errors("OpenVINO can't compute the features"):
            outputs = self._own.request.infer([batch], share_inputs=True)
        features: NDArray[np.float32] = outputs[0]
        unit: NDArray[np.float32] = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
        if not np.isfinite(unit).all():
            raise ModelError("The model gave features that aren't numbers. Try --precision fp32, or other weights.")
        return unit


class _SignalStack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_: ClassVar = [("pointer", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextlib.contextmanager
def _signal_stack_kept() -> Iterator[None]:
    """Restore the stack that this thread's signals are handled on.

    A model that is compiled brings one of its own, and puts back what it found when it is deleted. Of two models the
    second would put back the stack of the first, which is gone by then: the next Ctrl-C would be a segmentation fault.
    """
    if not sys.platform.startswith("linux"):
        yield
        return
    set_stack = ctypes.CDLL(None).sigaltstack
    before = _SignalStack()
    set_stack(None, ctypes.byref(before))
    try:
        yield
    finally:
        set_stack(ctypes.byref(before), None)


@contextlib.contextmanager
def translated_errors(what: str) -> Iterator[None]:
    """Raise an `OutOfMemoryError`, or a `ModelError` that says what OpenVINO can't do, instead of its own errors."""
    try:
        yield
    except (RuntimeError, MemoryError) as exc:
        if isinstance(exc, MemoryError) or "alloc" in str(exc):
            raise OutOfMemoryError("cpu is out of memory. Try --batch-size 1.") from exc
        raise ModelError(f"{what}: {cause(exc)}. Try --runtime torch.") from exc
