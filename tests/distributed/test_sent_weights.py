"""A model's files on nodes that don't see them."""

import json
import os
import pickle
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipcls.distributed import model_files as weights
from clipcls.distributed.model_files import SentModel, send
from clipcls.errors import StoppedError
from clipcls.models.encoder import open_encoder
from clipcls.models.locate import ModelFiles, locate
from clipcls.records import ModelSpec


class Store:
    """Contents by their references, and how often they were asked for."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []
        self.fetched = 0

    def put(self, content: bytes) -> int:
        self.contents.append(content)
        return len(self.contents) - 1

    def fetch(self, reference: Any) -> bytes:
        self.fetched += 1
        return self.contents[reference]


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of another node."""
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def moved(folder: Path, store: Store, tmp_path: Path) -> tuple[SentModel, Path]:
    """A model as a node has it that doesn't see its files."""
    copy = shutil.copytree(folder, tmp_path / "model")
    sent = send(locate(ModelSpec(str(copy))), store.put)
    copy.rename(tmp_path / "elsewhere")
    return pickle.loads(pickle.dumps(sent)), tmp_path / "elsewhere"


def contents(files: ModelFiles) -> list[bytes]:
    return [path.read_bytes() for path in files.all()]


def test_model_is_used_where_it_is_seen(tiny_model: Path) -> None:
    store = Store()
    sent = send(locate(ModelSpec(str(tiny_model))), store.put)
    assert sent.here(store.fetch).weights == (tiny_model / "open_clip_model.safetensors").absolute()
    assert store.fetched == 0


def test_model_is_put_on_a_node_once(tiny_model: Path, tmp_path: Path, node: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(weights, "_CHUNK", 1000)
    store = Store()
    sent, original = moved(tiny_model, store, tmp_path)
    files = sent.here(store.fetch)
    assert all(path.is_relative_to(node) for path in files.all())
    assert contents(files) == contents(locate(ModelSpec(str(original))))
    fetched = store.fetched
    assert fetched == len(store.contents) > 2
    assert sent.here(store.fetch) == files
    assert store.fetched == fetched
    encoder = open_encoder(files, "cpu", "fp32")
    assert (
        encoder.encode_text(["a"]) == open_encoder(locate(ModelSpec(str(original))), "cpu", "fp32").encode_text(["a"])
    ).all()


def test_model_that_was_put_there_in_part_is_put_there_again(
    tiny_model: Path, tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_CHUNK", 1000)
    store = Store()
    sent, original = moved(tiny_model, store, tmp_path)
    with pytest.raises(KeyError):  # as if the worker had ended after the first chunk
        sent.here(lambda reference: {0: store.contents[0]}[reference])
    assert contents(sent.here(store.fetch)) == contents(locate(ModelSpec(str(original))))


def test_model_that_was_not_sent_is_not_taken_for_empty(tiny_model: Path, tmp_path: Path, node: Path) -> None:
    store = Store()
    sent, original = moved(tiny_model, store, tmp_path)
    unsent = replace(sent, sent=tuple(replace(file, chunks=()) for file in sent.sent))
    with pytest.raises(StoppedError, match=r"open_clip_model.safetensors isn't seen, and hasn't been sent"):
        unsent.here(store.fetch)
    assert contents(sent.here(store.fetch)) == contents(locate(ModelSpec(str(original))))


def test_model_that_has_changed_is_another(tiny_model: Path, tmp_path: Path, node: Path) -> None:
    store = Store()
    sent, original = moved(tiny_model, store, tmp_path)
    first = sent.here(store.fetch)
    config = json.loads((original / "open_clip_config.json").read_text())
    (original / "open_clip_config.json").write_text(json.dumps(config, indent=1))
    again = send(locate(ModelSpec(str(original))), store.put)
    original.rename(tmp_path / "gone")
    assert again.here(store.fetch).settings[0].read_bytes() != first.settings[0].read_bytes()


def test_tokenizer_and_text_model_stay_in_their_folders(tiny_model: Path, tmp_path: Path, node: Path) -> None:
    files = locate(ModelSpec(str(tiny_model)))
    tokenizer, text_model = tmp_path / "tokenizer", tmp_path / "text"
    for folder, names in ((tokenizer, ["tokenizer_config.json", "vocab.txt"]), (text_model, ["config.json"])):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(f"{{}} {folder.name} {name}")
    config = files.config | {"text_cfg": files.config["text_cfg"] | {"hf_model_name": str(text_model)}}
    settings = (*files.settings, text_model / "config.json")
    store = Store()
    sent = send(replace(files, config=config, tokenizer=tokenizer, settings=settings), store.put)
    for folder in (tokenizer, text_model):
        folder.rename(tmp_path / f"{folder.name} gone")
    here = sent.here(store.fetch)
    assert here.tokenizer is not None
    assert sorted(path.name for path in here.tokenizer_files()) == ["tokenizer_config.json", "vocab.txt"]
    assert (Path(here.config["text_cfg"]["hf_model_name"]) / "config.json").read_text() == "{} text config.json"
    assert here.settings[-1].read_text() == "{} text config.json"


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owners")
def test_model_is_not_read_from_what_belongs_to_somebody_else(
    tiny_model: Path, tmp_path: Path, node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    sent, _ = moved(tiny_model, store, tmp_path)
    (node / f"clipcls-{os.getuid() + 1}").mkdir()
    somebody = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: somebody)
    with pytest.raises(StoppedError, match="belongs to somebody else"):
        sent.here(store.fetch)
