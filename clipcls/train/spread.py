"""A start from which small towers learn within minutes: features that differ from the first step on.

New towers map everything to nearly one direction (mean cosine of two captions 0.8 to 0.9), and a contrastive loss
first pulls that together further; a small model can stay there for the whole run. Here the last layer of either
tower is set from a sample of the data, so that its features have no common mean and no preferred direction.

Source: Krähenbühl et al. 2016, Data-dependent Initializations of Convolutional Neural Networks.
"""

from typing import Any

import torch
from torch import nn

from clipcls.errors import UsageError

TOKEN_GAIN = 4.0  # so that the words outweigh the positions at first
RIDGE = 0.1  # of the mean variance; keeps directions without variance from being blown up


def require_spreadable(model: Any) -> None:
    """Refuse a model whose towers can't be set.

    Raises:
        UsageError: a tower ends otherwise than it has to, or is narrower than `embed_dim`.
    """
    _image_projection(model)
    _text_projection(model)


def _image_projection(model: Any) -> nn.Linear:
    projection = getattr(getattr(model.visual, "head", None), "proj", None)
    if not isinstance(projection, nn.Linear) or projection.bias is None:
        raise UsageError("spread_init: needs an image tower with timm_proj linear and timm_proj_bias true")
    _require_width("image", projection.in_features, projection.out_features)
    return projection


def _text_projection(model: Any) -> nn.Parameter:
    projection = getattr(model, "text_projection", None)
    if not isinstance(projection, nn.Parameter):
        raise UsageError("spread_init: needs open_clip's own text tower, with a text projection without bias")
    _require_width("text", *projection.shape)
    return projection


def _require_width(tower: str, width: int, embed_dim: int) -> None:
    """As many directions are chosen among a tower's features as the embedding has."""
    if width < embed_dim:
        raise UsageError(
            f"spread_init: the {tower} tower's {width} features are fewer than embed_dim, {embed_dim}; "
            "lower embed_dim, or widen the tower"
        )


def spread_images(model: Any, images: torch.Tensor) -> None:
    """Set the image tower's projection.

    Args:
        model: with a timm image tower that ends in a linear projection with bias.
        images: a sample of inputs, `(n, 3, side, side)`.

    Raises:
        UsageError: the tower ends otherwise, or the sample is too small.
    """
    projection = _image_projection(model)
    if len(images) < 2:
        raise UsageError("spread_init: needs two pictures at least that can be decoded; leave it out")
    with torch.no_grad():
        features = torch.cat([model.visual.trunk(part).float() for part in torch.split(images, 256)])
        weight = _whitening(features, projection.out_features)
        projection.weight.copy_(weight.T)
        projection.bias.copy_(-features.mean(0) @ weight)


def spread_texts(model: Any, tokens: torch.Tensor) -> None:
    """Set the text tower's last gain and projection.

    Args:
        model: with open_clip's own text tower and a square or smaller projection.
        tokens: a sample of captions, `(n, context_length)`.

    Raises:
        UsageError: the tower ends otherwise.
    """
    projection = _text_projection(model)
    with torch.no_grad():
        model.token_embedding.weight.mul_(TOKEN_GAIN)
        outputs = []
        hook = model.ln_final.register_forward_hook(lambda module, args, output: outputs.append(output))
        for part in torch.split(tokens, 256):
            model.encode_text(part)
        hook.remove()
        states = torch.cat(outputs).float()  # (n, context_length, width)
        features = states[torch.arange(len(tokens)), tokens.argmax(-1)]  # at the end of each text
        model.ln_final.bias.sub_(features.mean(0))
        projection.copy_(_whitening(features, projection.shape[1]))


def _whitening(features: torch.Tensor, width: int) -> torch.Tensor:
    """`(features, width)`: projects to the directions of largest variance, scaled to unit norm of the result."""
    values, vectors = torch.linalg.eigh(torch.cov(features.T))
    values, vectors = values[-width:], vectors[:, -width:]
    scaled = vectors / (values.clamp_min(0) + RIDGE * values.mean()).sqrt()
    turn = torch.linalg.qr(torch.randn(width, width, device=features.device))[0]
    projection: torch.Tensor = scaled @ turn * width**-0.5
    return projection
