"""Small models of several families, randomly initialised, and what belongs to them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clipcls.labels.prompts import load_prompt_set, render
from clipcls.records import Label
from conftest import TINY_CONFIG

CLASSNAMES = ["cat", "delivery truck"]


SIGLIP_PREPROCESS = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bicubic",
    "resize_mode": "squash",
}


# the family of ViT-B-16-SigLIP with a smaller image tower and vocabulary
SIGLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 192,
    "init_logit_bias": -10,
    "custom_text": True,
    "vision_cfg": {
        "image_size": 224,
        "timm_model_name": "vit_tiny_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "none",
    },
    "text_cfg": {
        "context_length": 64,
        "vocab_size": 300,
        "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "width": 192,
        "heads": 3,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}


RESNET_CONFIG = TINY_CONFIG | {
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
}


COCA_CONFIG: dict[str, Any] = TINY_CONFIG | {
    "vision_cfg": TINY_CONFIG["vision_cfg"] | {"attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
    "text_cfg": TINY_CONFIG["text_cfg"] | {"embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}


def save_tokenizer(folder: Path) -> None:
    """A small tokenizer of SigLIP's kind: unigrams, an end token, padding with it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    texts = [prompt for name in CLASSNAMES for prompt in render(Label(name, (name,)), load_prompt_set("default"))]
    tokenizer.train_from_iterator([*texts, "the quick brown fox jumps over the lazy dog"] * 20, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def put_into_hub_cache(cache: Path, repo: str, files: dict[str, bytes]) -> None:
    """Lay files where huggingface_hub keeps a downloaded repository."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    snapshot = folder / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123abcd")
    for name, content in files.items():
        (snapshot / name).write_bytes(content)


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> Path:
    """Edit the tensors of a model folder."""
    path = folder / "open_clip_model.safetensors"
    state = load_file(path)
    edit(state)
    save_file(state, path)
    return folder


def train(state: dict[str, Tensor]) -> None:
    """Let weights look as if they were trained."""
    noise = torch.Generator().manual_seed(1)
    for name, tensor in state.items():
        if tensor.ndim == 1:
            state[name] = tensor + 0.1 * torch.randn(tensor.shape, generator=noise)
    state["logit_scale"] = torch.tensor(math.log(100))
