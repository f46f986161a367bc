"""What weights tell by their shapes, against what configurations state of the same models."""

import hashlib
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import pretrained as open_clip_pretrained

from clipcls.check.weights import (
    Sizes,
    architecture_names,
    config_sizes,
    fitting_architectures,
    is_same,
    is_unreadable,
    known_origins,
    preset_name,
    stated_preprocessings,
    token_ids,
    weights_sizes,
)
from clipcls.models.checkpoint import Checkpoint
from clipcls.models.locate import locate
from clipcls.records import ModelSpec
from conftest import TINY_CONFIG, save_model
from tiny_models import RESNET_CONFIG, SIGLIP_CONFIG

COCA_CONFIG = TINY_CONFIG | {
    "custom_text": True,
    "vision_cfg": TINY_CONFIG["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
    "text_cfg": TINY_CONFIG["text_cfg"] | {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": TINY_CONFIG["text_cfg"] | {"attn_pooler_heads": 2},
}
CONFIGS = {"ViT": TINY_CONFIG, "ResNet": RESNET_CONFIG, "SigLIP": SIGLIP_CONFIG, "CoCa": COCA_CONFIG}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_sizes_are_those_of_the_configuration(tmp_path: Path, config: dict[str, Any]) -> None:
    folder = save_model(tmp_path / "model", config)
    sizes, stated = weights_sizes(Checkpoint(folder / "open_clip_model.safetensors")), config_sizes(config)
    assert not sizes.differences(stated)
    # what the configuration states the weights tell, too
    told = {name for name in Sizes.__slots__ if getattr(sizes, name) is not None}  # type: ignore[attr-defined]
    untold = {name for name in Sizes.__slots__ if getattr(stated, name) is not None} - told  # type: ignore[attr-defined]
    assert untold <= ({"embed_dim"} if config is CONFIGS["SigLIP"] else set())


def test_weights_sizes_tell_those_of_a_vision_transformer_of_timm(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", SIGLIP_CONFIG)
    sizes = weights_sizes(Checkpoint(folder / "open_clip_model.safetensors"))
    assert (sizes.image_tower, sizes.image_width, sizes.patch_size, sizes.image_size) == ("timm", 192, 16, 224)


def test_differences_name_what_both_tell() -> None:
    weights, config = Sizes(image_size=224, image_width=768), Sizes(image_size=256, image_width=1024, text_width=512)
    found = weights.differences(config)
    assert [str(difference) for difference in found] == ["image width 768, not 1024", "image size 224, not 256"]
    assert [difference.is_resized for difference in found] == [False, True]


@pytest.mark.parametrize("name", ["tiny", "resnet"])
def test_fitting_architectures_are_those_of_every_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    configs = {
        "tiny": TINY_CONFIG,
        "tiny-quickgelu": TINY_CONFIG | {"quick_gelu": True},
        "tiny-mlp": TINY_CONFIG | {"vision_cfg": TINY_CONFIG["vision_cfg"] | {"mlp_ratio": 2.0}},
        "tiny-deep": TINY_CONFIG | {"text_cfg": TINY_CONFIG["text_cfg"] | {"layers": 3}},
        "resnet": RESNET_CONFIG,
        "transformers": TINY_CONFIG | {"text_cfg": {"hf_model_name": "someone/nothing"}},
    }
    for arch, config in configs.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, arch, config)
    folder = save_model(tmp_path / "model", configs[name])
    checkpoint = Checkpoint(folder / "open_clip_model.safetensors")
    assert fitting_architectures(checkpoint) == [arch for arch in configs if arch in (name, f"{name}-quickgelu")]


def test_architecture_names_are_those_of_both_activations() -> None:
    config = open_clip.get_model_config("ViT-B-32")
    assert architecture_names(config) == ["ViT-B-32", "ViT-B-32-quickgelu"]
    assert not architecture_names(TINY_CONFIG)


def test_known_origins_are_told_by_openais_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256(b"weights").digest()
    url = f"https://openaipublic.azureedge.net/clip/models/{digest.hex()}/RN50.pt"
    monkeypatch.setitem(open_clip_pretrained._PRETRAINED["RN50"]["openai"], "url", url)
    (origin,) = known_origins(tmp_path / "model.pt", "model.pt", digest)
    assert (str(origin), origin.quick_gelu) == ("RN50:openai", True)
    assert not known_origins(tmp_path / "model.pt", "model.pt", hashlib.sha256(b"others").digest())


def test_known_origins_are_told_by_the_repository() -> None:
    repo = "timm/vit_base_patch32_clip_224.openai"
    cached = Path("/hub/models--timm--vit_base_patch32_clip_224.openai/snapshots/01/open_clip_model.safetensors")
    for weights, model in ((cached, "elsewhere"), (Path("elsewhere"), f"hf-hub:{repo}")):
        found = known_origins(weights, model, b"")
        assert {str(origin) for origin in found} == {"ViT-B-32:openai", "ViT-B-32-quickgelu:openai"}
        assert all(origin.quick_gelu and repo in origin.evidence for origin in found)


def test_preset_names_are_those_that_preprocess_takes(tiny_model: Path) -> None:
    weights = str(tiny_model / "open_clip_model.safetensors")
    for name in ("openai", "imagenet", "siglip"):
        assert preset_name(locate(ModelSpec(weights, "ViT-B-32", name)).preprocess) == name
    assert preset_name(locate(ModelSpec("pictogram")).preprocess) is None


def test_stated_preprocessings_are_each_there_once() -> None:
    (siglip,) = stated_preprocessings("ViT-B-16-SigLIP")
    assert preset_name(siglip) == "siglip"
    large = stated_preprocessings("ViT-L-14")
    assert len(large) == len(set(large)) > 1
    assert not is_same(large[0], large[1])


def test_tokens_of_clips_tokenizer_are_all_readable() -> None:
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    assert token_ids(tokenizer) == 49408
    assert not is_unreadable(tokenizer, "猫")
    assert is_unreadable(tokenizer, " ")
    assert torch.is_tensor(tokenizer(["a"]))
