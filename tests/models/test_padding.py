"""Texts without the padding behind them: the same features and gradients."""

import copy
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch

from clipcls.models.encoder import load_encoder
from clipcls.models.padding import cut_to_length, without_padding
from clipcls.train.towers import TextTower
from conftest import TINY_CONFIG, save_model
from tiny_models import SIGLIP_CONFIG, SIGLIP_PREPROCESS, save_tokenizer
from tolerances import assert_as_exact

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["a cat", "", "three words more " * 9, "dog"]  # the third is longer than the context
CUSTOM = TINY_CONFIG | {"custom_text": True}
EOS = CUSTOM | {"text_cfg": TINY_CONFIG["text_cfg"] | {"pool_type": "eos", "eos_id": 49407}}
BIDIRECTIONAL = CUSTOM | {"text_cfg": TINY_CONFIG["text_cfg"] | {"no_causal_mask": True}}


def model_of(folder: Path, config: dict[str, Any]) -> tuple[Any, torch.Tensor]:
    save_model(folder, config)
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    with torch.no_grad():
        tower = model.text if hasattr(model, "text") else model
        tower.positional_embedding.mul_(20)  # so that positions matter
    return model.eval(), open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)


@pytest.mark.parametrize("config", [TINY_CONFIG, CUSTOM, EOS], ids=["clip", "custom", "eos"])
def test_short_texts_have_the_features_and_gradients_of_padded_ones(tmp_path: Path, config: dict[str, Any]) -> None:
    model, tokens = model_of(tmp_path / "model", config)
    tower = TextTower(model)
    short = tokens[[0, 1, 3]]
    cut = without_padding(tower.owner, short)
    assert (short.shape[1], cut.shape[1]) == (16, 8)
    exact = copy.deepcopy(model).double()
    found = []
    for owner, features in (
        (model, tower.encode(cut)),
        (model, model.encode_text(short)),
        (exact, exact.encode_text(short)),
    ):
        weights = [weight for name, weight in owner.named_parameters() if not name.startswith(("visual.", "logit_"))]
        found.append([features, *torch.autograd.grad(features.square().sum(), weights)])
    for ours, padded, reference in zip(*found, strict=True):
        assert_as_exact(ours, padded, reference)


def test_long_texts_keep_the_whole_context(tmp_path: Path) -> None:
    model, tokens = model_of(tmp_path / "model", TINY_CONFIG)
    assert without_padding(model, tokens).shape == (4, 16)
    assert cut_to_length(model, tokens) == {}
    assert without_padding(model, tokens[:0]).shape == (0, 16)


def test_tower_that_sees_padding_keeps_it(tmp_path: Path) -> None:
    model, tokens = model_of(tmp_path / "model", BIDIRECTIONAL)
    short = tokens[[0, 1, 3]]
    assert without_padding(model.text, short) is short
    assert cut_to_length(model.text, short[:, :8]) == {}
    folder = save_model(tmp_path / "siglip", SIGLIP_CONFIG, SIGLIP_PREPROCESS)
    save_tokenizer(folder)
    siglip = open_clip.create_model(f"local-dir:{folder}")
    assert without_padding(siglip.text, short) is short


def test_encoder_leaves_padding_out(tmp_path: Path) -> None:
    model, _ = model_of(tmp_path / "model", TINY_CONFIG)
    encoder = load_encoder(str(tmp_path / "model"))
    seen: list[torch.Size] = []
    encoder._text.token_embedding.register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    encoder.encode_text(["a cat", "dog"])
    assert seen == [torch.Size([2, 8])]
    assert model.context_length == 16
