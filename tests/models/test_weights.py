"""Weights files: what their tensors are, which are refused, and how slow ones are converted."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipcls.errors import ModelError
from clipcls.models.checkpoint import Checkpoint
from clipcls.models.encoder import load_encoder
from clipcls.records import ModelSpec
from shell import shell

State = dict[str, Any]
GUIDE = (Path(__file__).parents[2] / "examples" / "training" / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def state(tiny_model: Path) -> State:
    return dict(load_file(tiny_model / "open_clip_model.safetensors"))


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_the_table_of_tokens_stays_as_the_file_has_it(
    tiny_model: Path, tmp_path: Path, state: State, stored: torch.dtype
) -> None:
    """And the features are those of a tower that is converted as a whole."""
    (tmp_path / "open_clip_config.json").write_bytes((tiny_model / "open_clip_config.json").read_bytes())
    save_file({key: value.to(stored) for key, value in state.items()}, tmp_path / "model.safetensors")
    encoder = load_encoder(ModelSpec(str(tmp_path), device="cpu", precision="bf16"))
    kept = encoder.encode_text(["a cat", "a dog"])
    assert encoder._text.token_embedding.weight.dtype == stored
    with torch.inference_mode():
        encoder._text.to(torch.bfloat16)
    assert encoder._text.token_embedding.weight.dtype == torch.bfloat16
    assert (encoder.encode_text(["a cat", "a dog"]) == kept).all()


def save_old(state: State, path: Path) -> Path:
    """In the format before PyTorch 1.6."""
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return path


def save_training(state: State, path: Path) -> Path:
    """As open_clip's trainer does."""
    named = {f"module.{key}": value for key, value in state.items()}
    moments = {i: {"exp_avg": torch.ones_like(value)} for i, value in enumerate(state.values())}
    torch.save({"epoch": 3, "state_dict": named, "optimizer": {"state": moments}}, path)
    return path


def save_wrapped(state: State, path: Path) -> Path:
    torch.save({"state_dict": state}, path)
    return path


def save_plain(state: State, path: Path) -> Path:
    torch.save(state, path)
    return path


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@pytest.mark.parametrize("save", [save_old, save_training, save_wrapped, save_plain])
def test_the_guide_says_how_to_convert_a_checkpoint(tmp_path: Path, state: State, save: Any, forks: Any) -> None:
    """The same weights bit for bit and nothing else, also where tensors share memory or lie crosswise."""
    table = torch.arange(12.0).reshape(3, 4)
    state["visual.proj"] = state["visual.proj"].to(torch.bfloat16)
    state["visual.class_embedding"][0] = float("nan")
    state |= {"visual.whole": table, "visual.same": table, "visual.crosswise": table.T, "visual.part": table[1:, ::2]}
    save(state, tmp_path / "checkpoint.pt")
    (command,) = re.findall(r"^python -c .*? checkpoint\.pt model\.safetensors$", GUIDE, re.MULTILINE | re.DOTALL)
    with shell(tmp_path, tmp_path / "programs", forks) as opened:
        done = opened.run(command)
    assert done.code == 0, done.errors
    converted = Checkpoint(tmp_path / "model.safetensors")
    assert set(converted.keys) == state.keys()
    for key, tensor in converted.read(converted.keys).items():
        assert (tensor.dtype, tensor.shape) == (state[key].dtype, state[key].shape)
        assert torch.equal(_bytes(tensor), _bytes(state[key])), key


@pytest.mark.parametrize("save", [save_old, save_training, save_wrapped, save_plain])
def test_a_checkpoint_is_read_as_it_is(tmp_path: Path, state: State, save: Any) -> None:
    path = save(state, tmp_path / "weights.pt")
    checkpoint = Checkpoint(path)
    assert set(checkpoint.keys) == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in checkpoint.read(checkpoint.keys).items())
    assert list(tmp_path.iterdir()) == [path]


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


@pytest.mark.parametrize("zipped", [False, True])
def test_pickled_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], zipped: bool) -> None:
    path = tmp_path / "weights.bin"
    torch.save({"state_dict": {}, "x": _RunsCode()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match="refused"):
        Checkpoint(path)
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>", b"\x89PNG\r\n"]
)
def test_a_file_that_was_saved_in_place_of_weights_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.pt: not a weights file, whatever its name.*download"):
        Checkpoint(path)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    path = save_old({"layer1.weight": torch.ones(3)}, tmp_path / "weights.bin")
    with pytest.raises(ModelError, match="not the weights of a dual encoder"):
        Checkpoint(path)


@pytest.mark.parametrize("content", [{}, [torch.ones(1)], {7: torch.ones(1)}, {"state_dict": {"epoch": 3}}])
def test_a_checkpoint_without_named_tensors_is_refused(tmp_path: Path, content: Any) -> None:
    path = save_old(content, tmp_path / "weights.bin")
    with pytest.raises(ModelError, match="expected a dictionary of tensors"):
        Checkpoint(path)


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 and no more"])
def test_an_unreadable_file_is_an_error(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "weights.bin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=r"weights\.bin: (not a readable weights file|this file holds more)"):
        Checkpoint(path)
