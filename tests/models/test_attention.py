"""Self-attention with the batch in front against torch's own, alone and in open_clip's towers."""

import copy
import json
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import open_clip
import pytest
import torch
from open_clip import model as open_clip_model
from torch import Tensor, nn

from clipcls.models.attention import SelfAttention, keep_batch_first
from conftest import TINY_CONFIG
from tiny_models import COCA_CONFIG
from tolerances import assert_as_exact

N, LENGTH, WIDTH, HEADS = 3, 7, 24, 4
CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)


def float_mask(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(mask, float("-inf"))


def per_head() -> Tensor:
    """(n * heads, length, length): True at random places, never for the first token."""
    random = torch.Generator().manual_seed(5)
    return (torch.rand(N * HEADS, LENGTH, LENGTH, generator=random) < 0.4) & (torch.arange(LENGTH) > 0)


MASKS: dict[str, Callable[[], Tensor | None]] = {
    "none": lambda: None,
    "float": lambda: float_mask(CAUSAL),
    "bool": lambda: CAUSAL,
    "added": lambda: torch.linspace(-2, 2, LENGTH * LENGTH).view(LENGTH, LENGTH),
    "float_per_head": lambda: float_mask(per_head()),
    "bool_per_head": per_head,
    "expanded": lambda: float_mask(CAUSAL).expand(N * HEADS, -1, -1),
    "transposed": lambda: float_mask(CAUSAL).t().contiguous().t(),
}


def pair(heads: int = HEADS, **options: Any) -> tuple[nn.MultiheadAttention, nn.MultiheadAttention]:
    """torch's, and one of the same weights that was handed to `keep_batch_first`."""
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(WIDTH, heads, **{"batch_first": True} | options)
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.3)  # biases are zero at first, and would hide what is done with them
    ours = copy.deepcopy(plain)
    assert keep_batch_first(ours) is ours
    return plain, ours


def attend(attention: nn.Module, x: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]:
    """Attend in the precision of the layer's weights."""
    dtype = next(attention.parameters()).dtype
    x = x.to(dtype)
    mask = options.get("attn_mask")
    if mask is not None and mask.is_floating_point():
        options["attn_mask"] = mask.to(dtype)
    output, weights = attention(x, x, x, **{"need_weights": False} | options)
    return output, weights


def with_reference(plain: nn.Module, ours: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Ours, torch's, and torch's in float64, as `assert_as_exact` takes what they return."""
    return ours, plain, copy.deepcopy(plain).double()


# ------------------------------------------------------------------------------------------- one layer


@pytest.mark.parametrize(
    ("bias", "heads", "training"),  # of these, every two meet in all ways
    [(True, 4, True), (True, 1, False), (False, 4, False), (False, 1, True)],
    ids=["bias-4-training", "bias-1-eval", "unbiased-4-eval", "unbiased-1-training"],
)
@pytest.mark.parametrize("mask", MASKS)
def test_self_attention_equals_torchs_with_its_gradients(mask: str, bias: bool, heads: int, training: bool) -> None:
    attn_mask = MASKS[mask]()
    if attn_mask is not None and attn_mask.ndim == 3:
        attn_mask = attn_mask[: N * heads]
    found = []
    for attention in with_reference(*pair(heads, bias=bias)):
        attention.train(training)
        x = torch.randn(N, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
        x = x.to(next(attention.parameters()).dtype).requires_grad_()
        output, weights = attend(attention, x, attn_mask=attn_mask)
        assert weights is None
        (output * torch.linspace(0, 1, WIDTH)).sum().backward()
        found.append([output, x.grad, *(parameter.grad for parameter in attention.parameters())])
    for one, other, reference in zip(*found, strict=True):
        assert_as_exact(one, other, reference)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_self_attention_equals_torchs_in_inference(mask: str, dtype: torch.dtype) -> None:
    attn_mask = MASKS[mask]()
    if attn_mask is not None and attn_mask.is_floating_point():
        attn_mask = attn_mask.to(dtype)
    x = torch.randn(N, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    parts = with_reference(*(part.to(dtype).eval() for part in pair()))
    with torch.inference_mode():
        one, other, reference = (attend(part, x, attn_mask=attn_mask)[0] for part in parts)
    assert one.dtype == dtype
    assert_as_exact(one, other, reference)


def test_self_attention_under_autocast_equals_torchs() -> None:
    x = torch.randn(N, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1), requires_grad=True)
    ours, plain, exact = with_reference(*pair())
    with torch.autocast("cpu", torch.bfloat16):
        one, other = (attend(part, x, attn_mask=float_mask(CAUSAL))[0] for part in (ours, plain))
    assert_as_exact(one, other, attend(exact, x, attn_mask=float_mask(CAUSAL))[0])


@pytest.mark.parametrize(("mask", "training"), [("none", True), ("float", True), ("float", False)])
def test_self_attention_is_computed_here(mask: str, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by torch's, which the other tests would take for equal."""
    _, ours = pair()
    monkeypatch.setattr(nn.MultiheadAttention, "forward", None)
    attend(ours.train(training), torch.randn(N, LENGTH, WIDTH), attn_mask=MASKS[mask]())


def test_self_attention_drops_out_in_training_only() -> None:
    ours, plain, exact = with_reference(*pair(dropout=0.5))
    x, mask = torch.randn(N, LENGTH, WIDTH), float_mask(CAUSAL)
    one, other = (attend(ours, x, attn_mask=mask)[0] for _ in range(2))
    assert not torch.equal(one, other)
    one, other = (attend(ours.eval(), x, attn_mask=mask)[0] for _ in range(2))
    assert torch.equal(one, other)
    assert_as_exact(one, *(attend(part.eval(), x, attn_mask=mask)[0] for part in (plain, exact)))


def test_self_attention_keeps_the_state_dict() -> None:
    plain, ours = pair()
    assert type(ours) is SelfAttention
    assert list(plain.state_dict()) == list(ours.state_dict())
    assert all(torch.equal(plain.state_dict()[name], value) for name, value in ours.state_dict().items())
    again = copy.deepcopy(ours)
    again.load_state_dict(plain.state_dict(), strict=True)
    assert type(again) is SelfAttention


@pytest.mark.parametrize(
    "options",
    [
        {"need_weights": True},
        {"need_weights": True, "average_attn_weights": False, "attn_mask": float_mask(CAUSAL)},
        {"key_padding_mask": torch.tensor([[False] * 5 + [True] * 2] * N)},
        {"key_padding_mask": torch.tensor([[False] * 5 + [True] * 2] * N), "attn_mask": CAUSAL},
        {"attn_mask": float_mask(CAUSAL), "is_causal": True},
    ],
    ids=["weights", "weights_of_heads", "padding", "padding_and_mask", "causal"],
)
def test_self_attention_answers_what_else_torchs_is_asked(options: dict[str, Any]) -> None:
    x = torch.randn(N, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    outputs, weights = zip(*(attend(part, x, **options) for part in with_reference(*pair())), strict=True)
    assert_as_exact(*outputs)
    if options.get("need_weights"):
        assert_as_exact(*weights)
    else:
        assert weights == (None, None, None)


def test_self_attention_leaves_cross_attention_and_single_sequences_to_torch() -> None:
    ours, plain, exact = with_reference(*pair())
    x, y = torch.randn(N, LENGTH, WIDTH), torch.randn(N, 5, WIDTH)
    for inputs in ((x, y, y), (x[0], x[0], x[0]), (x, x, x + 1), (x, x.clone(), x)):
        one, other = (part(*inputs, need_weights=False)[0] for part in (ours, plain))
        assert_as_exact(one, other, exact(*(part.double() for part in inputs), need_weights=False)[0])


class Subclass(nn.MultiheadAttention):
    pass


@pytest.mark.parametrize(
    "attention",
    [
        nn.MultiheadAttention(WIDTH, HEADS, kdim=8, vdim=8, batch_first=True),
        nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True, batch_first=True),
        nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=True, batch_first=True),
        nn.MultiheadAttention(WIDTH, HEADS, batch_first=False),
        Subclass(WIDTH, HEADS, batch_first=True),
    ],
    ids=["kdim", "bias_kv", "zero_attn", "sequence_first", "subclass"],
)
def test_keep_batch_first_leaves_alone_what_is_not_plain(attention: nn.MultiheadAttention) -> None:
    kind = type(attention)
    keep_batch_first(nn.Sequential(attention))
    assert type(attention) is kind


# ------------------------------------------------------------------------------------------- whole towers

CONFIGS = {
    "plain": TINY_CONFIG,
    "coca": COCA_CONFIG,
    "last_uncausal": TINY_CONFIG
    | {"custom_text": True, "text_cfg": TINY_CONFIG["text_cfg"] | {"pool_type": "last", "no_causal_mask": True}},
    "average": TINY_CONFIG | {"vision_cfg": TINY_CONFIG["vision_cfg"] | {"pool_type": "avg", "final_ln_after_pool": 1}},
    "class_token": TINY_CONFIG | {"custom_text": True, "text_cfg": TINY_CONFIG["text_cfg"] | {"embed_cls": True}},
}


def built(config: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    settings = json.loads(json.dumps({key: value for key, value in config.items() if key != "custom_text"}))
    if "multimodal_cfg" in config:
        return open_clip.CoCa(**settings)
    return (open_clip.CustomTextCLIP if config.get("custom_text") else open_clip_model.CLIP)(**settings)


@cache
def tokens() -> Tensor:
    tokenizer = open_clip.get_tokenizer("ViT-B-32", context_length=16)
    return cast("Tensor", tokenizer(["a cat", "a photo of two dogs in the snow"]))


def features(model: Any) -> list[Tensor]:
    random = torch.Generator().manual_seed(2)
    pixels = torch.randn(2, 3, 32, 32, generator=random).to(next(model.parameters()).dtype)
    return [model.encode_image(pixels), model.encode_text(tokens())]


@pytest.mark.parametrize(("name", "training"), [*((name, False) for name in CONFIGS), ("plain", True), ("coca", True)])
def test_keep_batch_first_keeps_the_features_of_towers(name: str, training: bool) -> None:
    plain = built(CONFIGS[name]).train(training)
    ours = keep_batch_first(copy.deepcopy(plain))
    assert any(type(module) is SelfAttention for module in ours.modules())
    assert plain.state_dict().keys() == ours.state_dict().keys()
    models = with_reference(plain, ours)
    for found in zip(*map(features, models), strict=True):
        assert_as_exact(*found)
    with torch.inference_mode():
        for found in zip(*map(features, models), strict=True):
            assert_as_exact(*found)


def test_keep_batch_first_keeps_the_gradients_of_towers() -> None:
    plain = built(TINY_CONFIG)
    ours = keep_batch_first(copy.deepcopy(plain))
    models = with_reference(plain, ours)
    for model in models:
        (features(model)[0] @ features(model)[1].t()).diagonal().sum().backward()
    for named in zip(*(model.named_parameters() for model in models), strict=True):
        (name, one), (_, other), (_, reference) = named
        if one.grad is not None:
            assert_as_exact(one.grad, other.grad, reference.grad, name)
