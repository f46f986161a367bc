"""From a model's name to its files: folders, tags, hub, bare files; and what is refused."""

import json
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from huggingface_hub import constants

from clipcls.errors import ModelError, UsageError
from clipcls.models import hub
from clipcls.models import locate as sources
from clipcls.models.catalog import EMBEDDED
from clipcls.models.encoder import load_encoder
from clipcls.models.locate import WEIGHT_SUFFIXES, locate
from clipcls.records import ModelSpec
from conftest import OPENAI_PREPROCESS, TINY_CONFIG, save_model
from tiny_models import put_into_hub_cache

SIGLIP_STATISTICS = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "squash"}


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no connection."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.reachable.cache_clear()
    return folder


def test_locate_reads_a_folder(tiny_model: Path) -> None:
    for name in (str(tiny_model), f"local-dir:{tiny_model}"):
        files = locate(ModelSpec(name))
        assert files.weights == tiny_model / "open_clip_model.safetensors"
        assert files.preprocess.size == (32, 32)
        assert files.preprocess.mean == tuple(OPENAI_PREPROCESS["mean"])


def test_locate_finds_the_embedded_model() -> None:
    assert locate(ModelSpec("pictogram")).weights.parent == EMBEDDED / "pictogram"


def test_locate_takes_preprocessing_from_the_folder(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", TINY_CONFIG, SIGLIP_STATISTICS)
    preprocess = locate(ModelSpec(str(folder))).preprocess
    assert (preprocess.mean, preprocess.std, preprocess.resize_mode) == ((0.5,) * 3, (0.5,) * 3, "squash")


def test_locate_refuses_a_folder_without_preprocessing_until_told(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", TINY_CONFIG, {})
    with pytest.raises(ModelError, match="--preprocess"):
        locate(ModelSpec(str(folder)))
    assert locate(ModelSpec(str(folder), preprocess="siglip")).preprocess.resize_mode == "squash"


def test_locate_refuses_a_folder_without_weights(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", TINY_CONFIG)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        locate(ModelSpec(str(folder)))


def test_locate_refuses_to_choose_among_weights(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", TINY_CONFIG)
    for name in ("a.safetensors", "b.safetensors"):
        (folder / name).write_bytes((folder / "open_clip_model.safetensors").read_bytes())
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"a\.safetensors, b\.safetensors"):
        locate(ModelSpec(str(folder)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "JSON"),
        ("[]", "JSON object"),
        ('{"embed_dim": 3}', "no model_cfg"),
        ('{"model_cfg": {"embed_dim": 3, "vision_cfg": {}, "text_cfg": {}}, "preprocess_cfg": {"mean": 1}}', "std"),
        (
            '{"model_cfg": {"embed_dim": 3, "vision_cfg": {}, "text_cfg": {}},'
            ' "preprocess_cfg": {"mean": [0, 0, 0], "std": [1, 1, 1], "resize_mode": "fit"}}',
            "fit",
        ),
    ],
)
def test_locate_names_what_is_wrong_in_a_configuration(tmp_path: Path, config: str, message: str) -> None:
    folder = save_model(tmp_path / "model", TINY_CONFIG)
    (folder / "open_clip_config.json").write_text(config)
    with pytest.raises(ModelError, match=message) as caught:
        locate(ModelSpec(str(folder)))
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize(("arch", "preprocess"), [(None, None), ("ViT-B-32", None), (None, "openai")])
def test_locate_refuses_a_bare_file_while_anything_is_a_guess(
    tiny_model: Path, arch: str | None, preprocess: str | None
) -> None:
    with pytest.raises(UsageError, match="silently wrong"):
        locate(ModelSpec(str(tiny_model / "open_clip_model.safetensors"), arch, preprocess))


def test_locate_takes_a_bare_file_with_activation_and_preprocessing(tiny_model: Path, tmp_path: Path) -> None:
    weights = tiny_model / "open_clip_model.safetensors"
    plain = locate(ModelSpec(str(weights), "ViT-B-32", "imagenet"))
    quick = locate(ModelSpec(str(weights), "ViT-B-32-quickgelu", "openai"))
    assert (bool(plain.config.get("quick_gelu")), bool(quick.config.get("quick_gelu"))) == (False, True)
    assert plain.preprocess.mean == open_clip.constants.IMAGENET_MEAN
    (tmp_path / "own.json").write_text(json.dumps(SIGLIP_STATISTICS))
    own = locate(ModelSpec(str(weights), "ViT-B-32", str(tmp_path / "own.json")))
    assert own.preprocess.resize_mode == "squash"


@pytest.mark.parametrize("wrapped", [True, False])
def test_locate_takes_an_architecture_from_a_file(tiny_model: Path, tmp_path: Path, wrapped: bool) -> None:
    config = json.loads((tiny_model / "open_clip_config.json").read_text())
    path = tmp_path / "arch.json"
    path.write_text(json.dumps(config if wrapped else config["model_cfg"]))
    (tmp_path / "preprocess.json").write_text(json.dumps(config["preprocess_cfg"]))
    weights = tiny_model / "open_clip_model.safetensors"
    files = locate(ModelSpec(str(weights), str(path), str(tmp_path / "preprocess.json")))
    folder = locate(ModelSpec(str(tiny_model)))
    assert (files.config, files.preprocess) == (folder.config, folder.preprocess)
    assert path in files.settings


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ModelSpec("nosuch/model.safetensors"), "no such weights file"),
        (ModelSpec("ViT-B-3:openai"), "Did you mean ViT-B-32"),
        (ModelSpec("pictogramm"), "Did you mean pictogram"),
        (ModelSpec("ViT-B-32"), "needs a tag"),
        (ModelSpec("ViT-B-32:nosuch"), "no weights tagged 'nosuch'"),
        (ModelSpec("hf-hub:nothing"), "ORG/REPO"),
        (ModelSpec("pictogram", arch="ViT-B-32"), "--arch"),
        (ModelSpec("pictogram", preprocess="openai"), "--preprocess"),
    ],
)
def test_locate_refuses_what_it_does_not_know(spec: ModelSpec, message: str) -> None:
    with pytest.raises((UsageError, ModelError), match=message):
        locate(spec)


def test_unreachable_hub_is_an_error_with_three_ways_out(hub_cache: Path) -> None:
    with pytest.raises(ModelError) as caught:
        locate(ModelSpec("photo"))
    for part in ("HF_HUB_OFFLINE", "HF_HOME", "local folder", "--model everyday", "--model pictogram"):
        assert part in str(caught.value)


def test_a_tag_is_loaded_from_the_hub_cache(hub_cache: Path, tmp_path: Path) -> None:
    """Weights of ViT-B-32:openai, a QuickGELU tag of an architecture whose own configuration says GELU."""
    folder = save_model(tmp_path / "model", open_clip.get_model_config("ViT-B-32"))
    weights = (folder / "open_clip_model.safetensors").read_bytes()
    repo = open_clip.pretrained.get_pretrained_cfg("ViT-B-32", "openai")["hf_hub"].strip("/")
    put_into_hub_cache(hub_cache, repo, {"open_clip_model.safetensors": weights})
    encoder = load_encoder(ModelSpec("ViT-B-32:openai", device="cpu", precision="fp32"))
    reference = open_clip.create_model("ViT-B-32-quickgelu", str(folder / "open_clip_model.safetensors")).eval()
    with torch.no_grad():
        expected = reference.encode_text(open_clip.tokenize(["a cat"]), normalize=True).numpy()
    assert abs(encoder.encode_text(["a cat"]) - expected).max() <= 1e-5


def test_a_hub_repository_is_loaded_from_the_hub_cache(hub_cache: Path, tiny_model: Path) -> None:
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    put_into_hub_cache(hub_cache, "someone/tiny", files)
    one = load_encoder(ModelSpec("hf-hub:someone/tiny", device="cpu", precision="fp32"))
    other = load_encoder(ModelSpec(str(tiny_model), device="cpu", precision="fp32"))
    assert (one.encode_text(["a cat"]) == other.encode_text(["a cat"])).all()


def test_a_repository_without_weights_never_gives_random_ones(hub_cache: Path, tiny_model: Path) -> None:
    config = (tiny_model / "open_clip_config.json").read_bytes()
    put_into_hub_cache(hub_cache, "someone/empty", {"open_clip_config.json": config})
    with pytest.raises(ModelError, match="someone/empty"):
        locate(ModelSpec("hf-hub:someone/empty"))


def test_a_hub_that_swallows_connections_is_given_up_quickly(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listening socket that never answers, as a firewall that drops packets looks like."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{listener.getsockname()[1]}")
        monkeypatch.setattr(hub, "PROBE_SECONDS", 0.5)
        start = time.monotonic()
        with pytest.raises(ModelError, match="can't be reached"):
            locate(ModelSpec("photo"))
        assert time.monotonic() - start < 3


@pytest.mark.parametrize(
    ("there", "asked"),
    [
        ((), True),
        (("config.json", "added_tokens.json", "tokenizer_config.json"), True),
        (("spiece.model",), True),
        (("spiece.model", "tokenizer_config.json"), False),
    ],
)
def test_a_tokenizer_is_fetched_unless_its_vocabulary_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: tuple[str, ...], asked: bool
) -> None:
    fetched: list[str] = []

    def fetch(repo: str, candidates: Any, *, refresh: bool = False) -> Path:
        (name,) = candidates
        fetched.append(name)
        if name not in ("tokenizer_config.json", "vocab.txt"):
            raise hub.NoSuchFileError(f"{repo} has no {name}.")
        (tmp_path / name).touch()
        return tmp_path / name

    for name in there:
        (tmp_path / name).touch()
    monkeypatch.setattr(hub, "fetch", fetch)
    monkeypatch.setattr(hub, "cached", lambda repo, names: tmp_path / names[0] if names[0] in there else None)
    assert sources.fetch_tokenizer({"hf_tokenizer_name": "someone/words"}, refresh=False) == tmp_path
    assert ({"vocab.txt", "added_tokens.json", "config.json"} <= set(fetched)) == asked
    assert (tmp_path / "vocab.txt").exists() == asked


def test_tokenizer_files_are_all_that_the_tokenizer_is_made_of(tmp_path: Path) -> None:
    names = {"tokenizer_config.json", "vocab.txt", "added_tokens.json", "config.json"}
    for name in {*names, "README.md", "model.safetensors"}:
        (tmp_path / name).touch()
    files = locate(ModelSpec("pictogram"))
    assert files.tokenizer_files() == []
    assert {path.name for path in replace(files, tokenizer=tmp_path).tokenizer_files()} == names


def test_every_tag_of_open_clip_has_a_hub_address_and_preprocessing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `models --all` lists can be asked for; a tag without an address would only fail at a user's."""

    def fetch(repo: str, candidates: Any, *, refresh: bool = False) -> Path:
        asked.append((repo, candidates[0]))
        return Path("somewhere") / candidates[0]

    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(hub, "fetch", fetch)
    for arch, tag in open_clip.list_pretrained():
        files = locate(ModelSpec(f"{arch}:{tag}"))
        assert len(files.preprocess.mean) == 3
        stated = open_clip.pretrained.get_pretrained_cfg(arch, tag)
        assert files.config["quick_gelu"] or not stated.get("quick_gelu")
    weights = [repo for repo, name in asked if name.endswith(WEIGHT_SUFFIXES)]
    assert len(weights) == len(open_clip.list_pretrained())
    assert all("/" in repo for repo in weights)
