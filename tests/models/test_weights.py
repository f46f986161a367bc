"""Copies of weights that are slow to open: equal to their sources, whole or not there, never a reason to fail."""

import hashlib
import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from clipcls.errors import ModelError
from clipcls.models import checkpoint as weights
from clipcls.models.checkpoint import Checkpoint
from clipcls.models.encoder import load_encoder
from clipcls.models.safetensors_copies import Copies
from clipcls.records import ModelSpec

State = dict[str, Any]


def sha256(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


@pytest.fixture
def state(tiny_model: Path) -> State:
    return dict(load_file(tiny_model / "open_clip_model.safetensors"))


@pytest.fixture
def copies(tmp_path: Path) -> Copies:
    return Copies(tmp_path / "cache" / "weights", sha256)


@pytest.fixture
def never_unpickled(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it, and no pickle can be opened any more."""

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was opened")

    return lambda: monkeypatch.setattr(weights, "_load_pickle", refuse)


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


SLOW = [save_old, save_training]


def the_copy(copies: Copies) -> Path:
    (path,) = copies.folder.iterdir()
    return path


@pytest.mark.parametrize("save", SLOW)
def test_a_copy_gives_equal_features_and_spares_the_original(
    tiny_model: Path, tmp_path: Path, state: State, save: Any, never_unpickled: Callable[[], None]
) -> None:
    (tmp_path / "open_clip_config.json").write_bytes((tiny_model / "open_clip_config.json").read_bytes())
    source = save(state, tmp_path / "open_clip_pytorch_model.bin")
    spec = ModelSpec(str(tmp_path), device="cpu", precision="fp32")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    features = []
    for _ in range(2):
        encoder = load_encoder(spec, copies=tmp_path / "weights")
        features.append((encoder.encode_image(pixels), encoder.encode_text(["a cat"]), encoder.logit_scale))
        never_unpickled()
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [f"{sha256(source).hex()}.safetensors"]
    assert (features[0][0] == features[1][0]).all()
    assert (features[0][1] == features[1][1]).all()
    assert features[0][2] == features[1][2]


@pytest.mark.parametrize("save", SLOW)
def test_a_copy_holds_the_weights_bit_for_bit_and_nothing_else(
    tmp_path: Path, state: State, save: Any, copies: Copies
) -> None:
    state["visual.proj"] = state["visual.proj"].to(torch.bfloat16)
    state["visual.class_embedding"][0] = float("nan")
    Checkpoint(save(state, tmp_path / "weights.pt"), copies)
    copied = load_file(the_copy(copies))
    assert copied.keys() == state.keys()
    for key, tensor in state.items():
        assert (copied[key].dtype, copied[key].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(copied[key].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), key


@pytest.mark.parametrize("save", SLOW)
def test_tensors_that_share_memory_or_lie_crosswise_are_copied(
    tmp_path: Path, save: Any, copies: Copies, never_unpickled: Callable[[], None]
) -> None:
    table = torch.arange(12.0).reshape(3, 4)
    state = {
        "logit_scale": torch.tensor(1.0),
        "visual.whole": table,
        "visual.same": table,
        "visual.crosswise": table.T,
        "visual.part": table[1:, ::2],
        "visual.spread": torch.tensor([7.0]).expand(5),
        "visual.empty": torch.empty(0, 3),
        "visual.empty_too": torch.empty(0),
    }
    path = save(state, tmp_path / "weights.pt")
    Checkpoint(path, copies)
    never_unpickled()
    read = Checkpoint(path, copies).tower("visual")
    assert all(torch.equal(read[key], tensor) for key, tensor in state.items() if key != "logit_scale")


@pytest.mark.parametrize("save", [save_plain, save_wrapped])
def test_what_opens_quickly_is_not_copied(tmp_path: Path, state: State, save: Any, copies: Copies) -> None:
    Checkpoint(save(state, tmp_path / "weights.pt"), copies)
    save_file(state, tmp_path / "weights.safetensors")
    Checkpoint(tmp_path / "weights.safetensors", copies)
    assert not copies.folder.exists()


def test_without_a_folder_there_is_no_copy(tmp_path: Path, state: State) -> None:
    path = save_old(state, tmp_path / "weights.bin")
    Checkpoint(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_changed_original_gets_a_copy_of_its_own(tmp_path: Path, state: State, copies: Copies) -> None:
    path = tmp_path / "weights.bin"
    for scale in (1.0, 2.0):
        save_old(state | {"logit_scale": torch.tensor(scale)}, path)
        assert [Checkpoint(path, copies).scalar("logit_scale") for _ in range(2)] == [scale, scale]
    assert len(list(copies.folder.iterdir())) == 2


@pytest.mark.parametrize("kind", ["new file", "same file"])
def test_an_original_that_changes_while_it_is_read_is_not_copied(
    tmp_path: Path, state: State, copies: Copies, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = save_old(state | {"logit_scale": torch.tensor(1.0)}, tmp_path / "weights.bin")
    later = save_old(state | {"logit_scale": torch.tensor(2.0)}, tmp_path / "later.bin")
    load = weights._load_pickle

    def load_then_change(path: Path) -> Any:
        loaded = load(path)
        if kind == "new file":
            later.replace(path)
        else:
            path.write_bytes(later.read_bytes())
            os.utime(path, (1, 1))
        return loaded

    monkeypatch.setattr(weights, "_load_pickle", load_then_change)
    assert Checkpoint(path, copies).scalar("logit_scale") == 1.0
    assert list(copies.folder.iterdir()) == []
    monkeypatch.undo()
    assert [Checkpoint(path, copies).scalar("logit_scale") for _ in range(2)] == [2.0, 2.0]
    assert the_copy(copies).name == f"{sha256(path).hex()}.safetensors"


def test_a_copy_is_of_what_was_identified_first(tmp_path: Path, state: State) -> None:
    path = save_old(state, tmp_path / "weights.bin")
    hashed: list[Path] = []

    def hash_once(path: Path) -> bytes:
        hashed.append(path)
        return sha256(path)

    Checkpoint(path, Copies(tmp_path / "weights", hash_once))
    assert hashed == [path]


def test_few_copies_are_kept(tmp_path: Path, state: State, copies: Copies) -> None:
    path = tmp_path / "weights.bin"
    copies.folder.mkdir(parents=True)
    others = [copies.folder / name for name in ("model.safetensors", "0" * 64 + ".bin", "A" * 64 + ".safetensors")]
    for other in others:
        other.write_bytes(b"the user's")
        os.utime(other, (0, 0))
    made = []
    for i in range(5):
        save_old(state | {"logit_scale": torch.tensor(float(i))}, path)
        Checkpoint(path, copies)
        made.append(copies.folder / f"{sha256(path).hex()}.safetensors")
        # the first one is used all the time
        for age, copy in enumerate([made[0], *reversed(made[1:])]):
            if copy.exists():
                os.utime(copy, (10**9 - age, 10**9 - age))
    assert set(copies.folder.iterdir()) == {*others, made[0], made[3], made[4]}


def test_use_sets_the_time_of_a_copy(tmp_path: Path, state: State, copies: Copies) -> None:
    path = save_old(state, tmp_path / "weights.bin")
    Checkpoint(path, copies)
    os.utime(the_copy(copies), (0, 0))
    Checkpoint(path, copies)
    assert the_copy(copies).stat().st_mtime > 0


def cut_short(copy: Path) -> None:
    copy.write_bytes(copy.read_bytes()[:-100])


def cut_to_nothing(copy: Path) -> None:
    copy.write_bytes(b"")


def lengthened(copy: Path) -> None:
    copy.write_bytes(copy.read_bytes() + bytes(100))


def flipped_header(copy: Path) -> None:
    content = bytearray(copy.read_bytes())
    content[9] ^= 0xFF
    copy.write_bytes(content)


def of_another(copy: Path) -> None:
    save_file({"logit_scale": torch.tensor(9.0)}, copy, metadata={"source": "0" * 64})


@pytest.mark.parametrize("damage", [cut_short, cut_to_nothing, lengthened, flipped_header, of_another])
def test_a_damaged_copy_is_replaced(
    tmp_path: Path, state: State, copies: Copies, damage: Callable[[Path], None]
) -> None:
    path = save_old(state, tmp_path / "weights.bin")
    Checkpoint(path, copies)
    sound = the_copy(copies).read_bytes()
    damage(the_copy(copies))
    assert Checkpoint(path, copies).scalar("logit_scale") == state["logit_scale"].item()
    assert load_file(the_copy(copies)).keys() == state.keys()
    assert len(the_copy(copies).read_bytes()) == len(sound)


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code ran",))


@pytest.mark.parametrize("save", SLOW)
def test_pickled_code_is_refused_and_never_copied(
    tmp_path: Path, save: Any, copies: Copies, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.bin"
    torch.save({"state_dict": {}, "x": _RunsCode()}, path, _use_new_zipfile_serialization=save is not save_old)
    with pytest.raises(ModelError, match="refused"):
        Checkpoint(path, copies)
    assert "code ran" not in capsys.readouterr().out
    assert not copies.folder.exists()


@pytest.mark.parametrize(
    "content", [b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>", b"\x89PNG\r\n"]
)
def test_a_file_that_was_saved_in_place_of_weights_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.pt: not a weights file, whatever its name.*download"):
        Checkpoint(path)


def test_weights_of_something_else_are_refused_and_never_copied(tmp_path: Path, copies: Copies) -> None:
    path = save_old({"layer1.weight": torch.ones(3)}, tmp_path / "weights.bin")
    with pytest.raises(ModelError, match="not the weights of a dual encoder"):
        Checkpoint(path, copies)
    assert not copies.folder.exists()


@pytest.mark.parametrize("content", [{}, [torch.ones(1)], {7: torch.ones(1)}, {"state_dict": {"epoch": 3}}])
def test_a_checkpoint_without_named_tensors_is_refused(tmp_path: Path, copies: Copies, content: Any) -> None:
    path = save_old(content, tmp_path / "weights.bin")
    with pytest.raises(ModelError, match="expected a dictionary of tensors"):
        Checkpoint(path, copies)
    assert not copies.folder.exists()


@pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 and no more"])
def test_an_unreadable_original_is_the_same_error_with_copies(
    tmp_path: Path, copies: Copies, content: bytes | None
) -> None:
    path = tmp_path / "weights.bin"
    if content is not None:
        path.write_bytes(content)
    for kept in (None, copies):
        with pytest.raises(ModelError, match=r"weights\.bin: (not a readable weights file|this file holds more)"):
            Checkpoint(path, kept)


def test_a_folder_that_cannot_be_made_is_one_warning(
    tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    path = save_old(state, tmp_path / "weights.bin")
    with caplog.at_level(logging.WARNING):
        checkpoint = Checkpoint(path, Copies(tmp_path / "cache" / "weights", sha256))
    assert checkpoint.tower("visual")
    assert len(caplog.messages) == 1
    assert str(path) in caplog.text


def test_a_full_disk_is_one_warning_and_leaves_nothing(tmp_path: Path, state: State) -> None:
    path = save_old(state, tmp_path / "weights.bin")
    code = (
        "import hashlib, logging, resource, sys\n"
        "from pathlib import Path\n"
        "from clipcls.models.safetensors_copies import Copies\n"
        "from clipcls.models.checkpoint import Checkpoint\n"
        "logging.basicConfig(format='WARNED %(message)s')\n"
        "source, folder = map(Path, sys.argv[1:])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))\n"
        "sha256 = lambda path: hashlib.sha256(path.read_bytes()).digest()\n"
        "checkpoint = Checkpoint(source, Copies(folder, sha256))\n"
        "print(len(checkpoint.tower('visual')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "weights")], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) > 0
    assert done.stderr.count("WARNED no safetensors copy") == 1
    assert list((tmp_path / "weights").iterdir()) == []


def _open_often(source: Path, folder: Path) -> None:
    for _ in range(10):
        assert Checkpoint(source, Copies(folder, sha256)).scalar("logit_scale") is not None


def test_two_processes_may_copy_at_once(tmp_path: Path, state: State, copies: Copies) -> None:
    path = save_old(state, tmp_path / "weights.bin")
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    processes = [context.Process(target=_open_often, args=(path, copies.folder)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert load_file(the_copy(copies)).keys() == state.keys()
