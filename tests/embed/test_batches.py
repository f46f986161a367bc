"""Batches that are halved where memory runs out, and how that shows at each layer."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from clipcls import ModelSpec, load_encoder
from clipcls.embed.batches import Batches
from clipcls.errors import OutOfMemoryError
from clipcls.models.encoder import Encoder
from clipcls.records import ImageRef
from conftest import FakeEncoder, embed_images, embed_texts, save_pictures
from shell import run_on_files


class Device:
    """Encodes a number as itself, as long as no more come at once than fit."""

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.asked: list[int] = []

    def encode(self, items: Sequence[int]) -> NDArray[np.float32]:
        self.asked.append(len(items))
        if len(items) > self.fits:
            raise OutOfMemoryError("too many")
        return np.array(items, np.float32)[:, None]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# ------------------------------------------------------------------------------------------- halving


@pytest.mark.parametrize("count", [1, 7, 8, 9, 64, 100])
@pytest.mark.parametrize("fits", [1, 3, 8, 1000])
def test_batches_keep_the_order_whatever_fits(count: int, fits: int) -> None:
    features = Batches(Device(fits).encode, 8).encode(range(count))
    assert features[:, 0].tolist() == list(range(count))


def test_batches_halve_and_stay_at_the_smaller_size(caplog: pytest.LogCaptureFixture) -> None:
    device = Device(5)
    batches = Batches(device.encode, 16)
    batches.encode(range(16))
    assert device.asked == [16, 8, 4, 4, 4, 4]
    batches.encode(range(6))
    assert device.asked[6:] == [4, 2]
    assert batches.size == 4
    assert warnings_in(caplog) == ["out of memory at 16 in a batch: it goes on with 4"]


def test_batches_say_so_again_only_where_they_shrink_again(caplog: pytest.LogCaptureFixture) -> None:
    device = Device(4)
    batches = Batches(device.encode, 8)
    batches.encode(range(32))
    device.fits = 2
    batches.encode(range(32))
    assert warnings_in(caplog) == [
        "out of memory at 8 in a batch: it goes on with 4",
        "out of memory at 4 in a batch: it goes on with 2",
    ]


def test_batches_that_fit_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    device = Device(8)
    Batches(device.encode, 8).encode(range(20))
    assert (device.asked, warnings_in(caplog)) == ([8, 8, 4], [])


def test_batches_of_one_that_does_not_fit_raise(caplog: pytest.LogCaptureFixture) -> None:
    device = Device(0)
    with pytest.raises(OutOfMemoryError):
        Batches(device.encode, 8).encode(range(8))
    assert (device.asked, warnings_in(caplog)) == ([8, 4, 2, 1], [])


def test_batches_let_other_errors_through() -> None:
    def broken(items: Sequence[int]) -> Any:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        Batches(broken, 8).encode(range(8))


# ------------------------------------------------------------------------------------------- the encoder


def exhausted(*_: object) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def allocating(*_: object) -> Any:
    return torch.empty(2**60, dtype=torch.uint8)


def numpys(*_: object) -> Any:
    raise MemoryError("Unable to allocate 3 GiB for an array")


@pytest.mark.parametrize("failing", [exhausted, allocating, numpys])
@pytest.mark.parametrize("tower", ["_visual", "_text"])
def test_encoder_translates_exhausted_memory(tiny_model: Path, failing: Any, tower: str) -> None:
    encoder = load_encoder(ModelSpec(str(tiny_model), device="cpu", precision="fp32"))
    module = getattr(encoder, tower)
    module.forward = failing
    with pytest.raises(OutOfMemoryError, match=r"^cpu is out of memory. Try --batch-size 1") as caught:
        if tower == "_visual":
            encoder.encode_image(np.zeros((2, 32, 32, 3), np.uint8))
        else:
            encoder.encode_text(["a cat"])
    assert caught.value.exit_code == 4
    assert caught.value.__cause__ is not None


def test_encoder_leaves_other_runtime_errors_as_they_are(tiny_model: Path) -> None:
    encoder = load_encoder(ModelSpec(str(tiny_model), device="cpu", precision="fp32"))
    encoder._visual.forward = lambda *_: torch.zeros(2) @ torch.zeros(3)
    with pytest.raises(RuntimeError, match="size"):
        encoder.encode_image(np.zeros((2, 32, 32, 3), np.uint8))


# ------------------------------------------------------------------------------------------- the pipelines


def short_of_memory(encoder: FakeEncoder, method: str, fits: int) -> list[int]:
    """Have an encoder run out of memory for more than so many; returns the sizes that it is asked for."""
    encode = getattr(encoder, method)
    asked: list[int] = []

    def limited(items: Sequence[Any]) -> Any:
        asked.append(len(items))
        if len(items) > fits:
            raise OutOfMemoryError("cpu is out of memory. Try --batch-size 1.")
        return encode(items)

    setattr(encoder, method, limited)
    return asked


def test_embed_images_goes_on_in_order_with_smaller_batches(
    fake_encoder: FakeEncoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images = [ImageRef(str(path)) for path in save_pictures(tmp_path, 20)]
    images.insert(5, ImageRef("gone.png", error="gone"))
    expected = np.concatenate([batch.features for batch in embed_images(images, fake_encoder, batch_size=8)])
    asked = short_of_memory(fake_encoder, "encode_image", 3)
    batches = list(embed_images(images, fake_encoder, batch_size=8))
    assert [image for batch in batches for image in batch.images] == images
    np.testing.assert_allclose(np.concatenate([batch.features for batch in batches]), expected, atol=1e-6)
    assert asked[:3] == [8, 4, 2] and max(asked[3:]) == 2
    assert warnings_in(caplog) == ["out of memory at 8 in a batch: it goes on with 2"]


def test_embed_images_that_never_fit_raise(fake_encoder: FakeEncoder, tmp_path: Path) -> None:
    images = [ImageRef(str(path)) for path in save_pictures(tmp_path, 5)]
    short_of_memory(fake_encoder, "encode_image", 0)
    with pytest.raises(OutOfMemoryError):
        list(embed_images(images, fake_encoder, batch_size=4))


def test_embed_texts_goes_on_with_smaller_batches(fake_encoder: FakeEncoder, caplog: pytest.LogCaptureFixture) -> None:
    prompts = [(f"{i} red", f"{i} blue green") for i in range(50)]
    expected = embed_texts(prompts, fake_encoder)
    short_of_memory(fake_encoder, "encode_text", 20)
    found = embed_texts(prompts, fake_encoder)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.features, other.features, atol=1e-6)
    assert warnings_in(caplog) == ["out of memory at 64 in a batch: it goes on with 16"]


# ------------------------------------------------------------------------------------------- the command line


def run_short_of_memory(fits: int, arguments: Sequence[str], folder: Path, environment: dict[str, str]) -> None:
    """In a process of its own: the command line with a model that takes so many pictures at a time."""
    encode = Encoder.encode_image

    def limited(self: Encoder, pixels: Any) -> Any:
        if len(pixels) > fits:
            raise OutOfMemoryError("cpu is out of memory. Try --batch-size 1.")
        return encode(self, pixels)

    Encoder.encode_image = limited  # type: ignore[method-assign]
    run_on_files(arguments, folder, environment)


@pytest.mark.parametrize(("fits", "code"), [(2, 0), (0, 4)])
def test_predict_short_of_memory_goes_on_or_exits_with_4(
    tiny_model: Path, tmp_path: Path, forks: Any, fits: int, code: int
) -> None:
    pictures = save_pictures(tmp_path / "pictures", 9)
    streams = tmp_path / "streams"
    streams.mkdir()
    (streams / "stdin").touch()
    arguments = ["predict", "pictures", "--labels", "cat,dog", "--model", str(tiny_model), "--batch-size", "8"]
    given = (fits, [*arguments, "--device", "cpu"], streams, dict(os.environ))
    process = forks.Process(target=run_short_of_memory, args=given)
    process.start()
    process.join(120)
    output, errors = ((streams / name).read_text() for name in ("stdout", "stderr"))
    assert process.exitcode == code, errors
    if code:
        assert errors.startswith("clipcls: error: cpu is out of memory") and "Traceback" not in errors
        assert output == ""
    else:
        assert errors == "clipcls: warning: out of memory at 8 in a batch: it goes on with 2\n"
        assert [line.split("\t")[0] for line in output.splitlines()] == [f"pictures/{path.name}" for path in pictures]
