"""Converts a tower from torch to OpenVINO, and checks that the conversion computes what torch does.

The torch module that `models.encoder` builds is traced; no architecture is described a second time.
"""

import contextlib
import errno
import logging
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipcls.errors import NOTICE, OutOfMemoryError
from clipcls.models.encoder import Encoder
from clipcls.models.padding import end_token, sees_no_padding, without_padding
from clipcls.models.runtime.conversions import MODEL_NAME, TOWERS, Conversion, Conversions, Tower
from clipcls.models.runtime.engine import CompiledTower, cause, openvino, save
from clipcls.models.runtime.pixels import normalised_pixels
from clipcls.records import Precision

logger = logging.getLogger(__name__)

# how far a feature may be from torch's in fp32
_FP32_ERROR = 1e-4
# how far 1 - cosine may be from that in fp32 in bf16: so many times torch's own, or so much
_BF16_FACTOR, _BF16_ERROR = 2.0, 5e-5
_TEXTS = (
    *("a photo of a cat", "red", "a blurry photo of three delivery trucks on a road by the sea"),
    "12 % of 345 €: Straße, café, 猫",
)


class ConversionError(Exception):
    """A tower can't be converted, or computes something else once it is."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a tower is traced with and checked on.

    Attributes:
        batch: the tower's input.
        shape: the input's shape, with -1 for what may vary.
        notes: what the compiled encoder has to know of the tower.
    """

    batch: Tensor
    shape: list[int]
    notes: dict[str, Any]


def convert(encoder: Encoder, tower: Tower, precision: Precision, conversions: Conversions) -> Conversion:
    """Convert a tower, check it and keep it, unless another process just has.

    Returns:
        The conversion, with the reason in its `failure` where torch has to compute the tower.

    Raises:
        OSError: it can't be kept.
        OutOfMemoryError, MemoryError: the memory doesn't hold it.
        ModelError: the tower's weights can't be loaded.
    """
    with conversions.making() as draft:
        found = conversions.find(tower, precision)
        if found is not None:
            return found
        start = time.perf_counter()
        module = encoder.build(tower, "fp32")
        _require_room(module, tower, precision, conversions)
        logger.log(
            NOTICE, "model %s: converting its %s for OpenVINO, once (some seconds) …", encoder.name, TOWERS[tower]
        )
        example = _example(encoder, tower, module)
        failure = ""
        # where bf16 loses more than with torch, as in networks of convolutions, fp32 is as quick as torch's bf16
        for tried in dict.fromkeys((precision, "fp32")):
            try:
                _require_room(module, tower, tried, conversions)
                _write(module, example, tried, draft)
                error = _check(encoder, tower, module, example, tried, draft)
            except (OSError, MemoryError, OutOfMemoryError):
                raise  # of this machine at this moment, and so nothing to remember of the tower
            except Exception as exc:  # noqa: BLE001 - tracing runs any tower's code, and torch can compute it
                own = isinstance(exc, ConversionError)
                failure = str(exc) if own else f"{type(exc).__name__}: {cause(exc)}"
                logger.info("not converted in %s: %s", tried, failure)
                for file in draft.iterdir():
                    file.unlink()
            else:
                logger.info(
                    "converted the %s in %.1f s; features in %s differ by %.1e",
                    *(TOWERS[tower], time.perf_counter() - start, tried, error),
                )
                return conversions.keep(draft, tower, precision, example.notes | {"computed_in": tried})
        logger.log(NOTICE, "model %s: its %s stays with torch: %s", encoder.name, TOWERS[tower], failure)
        return conversions.keep(draft, tower, precision, example.notes, failure)


def fixed_pictures(count: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return (count, height, width, 3) uint8, the same at each call: smooth colours, edges and noise."""
    height, width = size
    random = np.random.default_rng(0)
    down, across = np.mgrid[0:height, 0:width].astype(np.float64)
    pictures = np.empty((count, height, width, 3))
    for picture in pictures:
        base, slope = random.uniform(40, 215, 3), random.uniform(-90, 90, (2, 3))
        picture[:] = base + (down / height - 0.5)[..., None] * slope[0] + (across / width - 0.5)[..., None] * slope[1]
        for _ in range(6):
            y, x = random.integers(0, height), random.integers(0, width)
            inside = np.hypot(down - y, across - x) < random.uniform(0.1, 0.4) * max(size)
            picture[inside] = 0.3 * picture[inside] + 0.7 * random.uniform(0, 255, 3)
        picture += random.normal(0, random.uniform(0, 25), picture.shape)
    return pictures.clip(0, 255).astype(np.uint8)


class _Pooled(nn.Module):
    """A tower that gives its features alone; of pictures it takes (n, height, width, 3), as they lie in memory."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, batch: Tensor) -> Tensor:
        features = self.tower(batch.permute(0, 3, 1, 2) if batch.ndim == 4 else batch)  # NHWC -> NCHW
        # CoCa's towers return their tokens as well
        pooled: Tensor = features[0] if isinstance(features, tuple) else features
        return pooled


def _example(encoder: Encoder, tower: Tower, module: nn.Module) -> Sample:
    if tower == "visual":
        size = encoder.preprocess.size
        batch = torch.from_numpy(normalised_pixels(fixed_pictures(4, size), encoder.preprocess))
        return Sample(batch, [-1, *size, 3], {})
    tokens = encoder.tokenize(_TEXTS)
    cuts = sees_no_padding(module)
    notes = {
        "cuts_padding": cuts,
        "end_token": end_token(module),
        "has_clip_tokenizer": encoder.has_clip_tokenizer,
    }
    tokens = without_padding(module, tokens)
    return Sample(tokens, [-1, -1 if cuts else tokens.shape[1]], notes)


def _require_room(module: nn.Module, tower: Tower, precision: Precision, conversions: Conversions) -> None:
    """Refuse, before the work, a tower that takes more room than is left beside its model's other one.

    Raises:
        OSError: it does.
    """
    size = sum(parameter.numel() for parameter in module.parameters()) * (2 if precision == "bf16" else 4)
    if size > conversions.room(tower, precision):
        raise OSError(
            errno.ENOSPC,
            f"the {TOWERS[tower]} takes {size / 2**20:,.0f} MB, too many for the half of the cache that is for "
            "converted models; a larger --cache-size helps",
        )


def _write(module: nn.Module, example: Sample, precision: Precision, folder: Path) -> None:
    with torch.inference_mode(), _logging_kept(), _signals_put_off(), warnings.catch_warnings():
        # a trace warns of each number that it takes for a constant; the check below finds those that matter
        warnings.simplefilter("ignore")
        # torch's own check of the trace would take longer than all the rest
        traced = torch.jit.trace(_Pooled(module).eval(), example.batch[:2], check_trace=False)  # type: ignore[no-untyped-call]
        model = openvino().convert_model(traced, example_input=example.batch[:2], input=example.shape)
    # half the room, with more digits than bf16 has
    save(model, folder / MODEL_NAME, in_fp16=precision == "bf16")


@contextlib.contextmanager
def _signals_put_off() -> Iterator[None]:
    """Let signals such as Ctrl-C wait for the end of a conversion, some seconds at most.

    Tracing and converting call Python from C++, where what a handler raises is lost, or ends the process.
    """
    came: list[int] = []
    is_main = threading.current_thread() is threading.main_thread()  # the only one that signals reach
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    ours = [number for number, handler in before.items() if callable(handler)]
    for number in ours:
        signal.signal(number, lambda number, _: came.append(number))
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, before[number])
        for caught in dict.fromkeys(came):
            signal.raise_signal(caught)


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """Restore the root logger, which OpenVINO silences, and leaves so when a conversion fails."""
    root = logging.getLogger()
    level, filters = root.level, root.filters[:]
    try:
        yield
    finally:
        root.setLevel(level)
        root.filters[:] = filters


def _check(
    encoder: Encoder, tower: Tower, module: nn.Module, example: Sample, precision: Precision, folder: Path
) -> float:
    """Return how far the features are from torch's: in fp32 at most, in bf16 1 - cosine in the mean.

    Raises:
        ConversionError: it is too far.
    """
    expected = _by_torch(module, example.batch)
    compiled = CompiledTower(folder / MODEL_NAME, precision, threads=1, streams=1)
    # in batches, and texts of a length, other than those that it was traced with
    parts = example.batch[:1], example.batch[1:]
    if tower == "text":
        parts = without_padding(module, parts[0]).contiguous(), parts[1]
    found = np.concatenate([compiled(part.numpy()) for part in parts])
    if precision == "fp32":
        error, bound = float(np.abs(found - expected).max()), _FP32_ERROR
    else:
        batch = example.batch if tower == "text" else example.batch.bfloat16()
        in_bf16 = _by_torch(encoder.build(tower, "bf16"), batch)
        error, own = (float(1.0 - (features * expected).sum(axis=1).mean()) for features in (found, in_bf16))
        bound = max(_BF16_FACTOR * own, _BF16_ERROR)
    if not error <= bound:
        raise ConversionError(f"its features in {precision} differ from torch's by {error:.1e}, more than {bound:.0e}")
    return error


def _by_torch(module: nn.Module, batch: Tensor) -> NDArray[np.float32]:
    with torch.inference_mode():
        features: NDArray[np.float32] = nn.functional.normalize(_Pooled(module)(batch).float(), dim=-1).numpy()
    return features
