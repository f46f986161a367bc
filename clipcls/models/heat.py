"""Gradients of a picture's similarities by the attention that an image tower pays to its patches.

Source: Bousselham et al. 2024 (LeGrad), section 3, https://arxiv.org/abs/2404.03214. There, each layer has a score of
its own, pooled from its own tokens. Here the one score counts that the model gives, from its last layer.
"""

from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from clipcls.errors import UsageError
from clipcls.models.encoder import Encoder
from clipcls.models.runtime.pixels import normalised_pixels
from clipcls.records import Preprocessing

Array = NDArray[np.float32]

# of torch's `multi_head_attention_forward`, after query, key and value
_HEADS_ARGUMENTS = (
    *("embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v"),
    *("add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias"),
)


class AttendingTower:
    """An image tower whose attention can be followed.

    Args:
        tower: it stays as it is; its weights must be no inference tensors.
        grid: rows and columns of its patches.

    Attributes:
        grid: rows and columns of its patches.
    """

    def __init__(self, tower: nn.Module, grid: tuple[int, int], preprocess: Preprocessing) -> None:
        self.grid = grid
        self._tower = tower
        self._preprocess = preprocess
        self._weight = next(tower.parameters())
        # where attention pools the tokens, that alone says what each has in the result
        self._is_pooled = _attention_pool(tower) is not None

    @classmethod
    def of(cls, encoder: Encoder) -> Self | None:
        """Return the image tower of an encoder, built anew in fp32; None if it attends to no patches.

        Raises:
            ModelError: the weights can't be loaded.
        """
        tower = encoder.build("visual", "fp32")
        grid = _grid(tower, encoder.preprocess)
        return None if grid is None else cls(tower, grid, encoder.preprocess)

    def look(self, pixels: NDArray[np.uint8]) -> "AttentionLook":
        """Send one picture through the tower.

        Args:
            pixels: (height, width, 3), from `clipcls.images.fit.load_pixels`.

        Raises:
            UsageError: the tower's attention isn't one to all patches.
        """
        batch = torch.from_numpy(normalised_pixels([pixels], self._preprocess)).to(self._weight)
        with torch.enable_grad(), _Attention() as attention:
            found = self._tower(batch.permute(0, 3, 1, 2))  # NHWC -> NCHW, in name only
            features = functional.normalize(found[0] if isinstance(found, tuple) else found, dim=-1)[0]
        weights = attention.weights[-1:] if self._is_pooled else attention.weights
        patches = self.grid[0] * self.grid[1]
        if not weights or any(layer.shape[-1] < patches for layer in weights):
            raise UsageError("the model's attention can't be followed: use --method occlusion.")
        return AttentionLook(features, weights, self.grid)


class AttentionLook:
    """One picture in a tower, with what all gradients have in common.

    Attributes:
        features: (embed_dim,) float32, L2-normalised.
    """

    def __init__(self, features: Tensor, weights: list[Tensor], grid: tuple[int, int]) -> None:
        self.features: Array = features.detach().float().cpu().numpy()
        self._features = features
        self._weights = weights
        self._grid = grid

    def maps(self, directions: Array) -> Array:
        """Return how much each patch adds to the product of the features with each direction, if attention to it grows.

        Args:
            directions: (n_labels, embed_dim), such as text features.

        Returns:
            (n_labels, rows, columns), at least 0: the gradient by the attention, without what is negative, as the mean
            over heads, attending tokens and layers.
        """
        rows, columns = self._grid
        found = np.empty((len(directions), rows, columns), dtype=np.float32)
        for direction, target in zip(directions, found, strict=True):
            product = self._features @ torch.from_numpy(direction).to(self._features)
            # one backward pass reaches all layers
            gradients = torch.autograd.grad(product, self._weights, retain_graph=True)
            layers = torch.stack([_by_patch(gradient, rows * columns) for gradient in gradients])
            target[:] = layers.mean(dim=0).view(rows, columns).float().cpu().numpy()
        return found


def _by_patch(gradient: Tensor, patches: int) -> Tensor:
    """Return (patches,), the mean over heads and queries of a layer's gradient, (1, heads, queries, tokens)."""
    # of a last block that is computed for the class token only, the other tokens' gradients are 0
    queries = gradient.shape[-1] if gradient.shape[-2] == 1 else gradient.shape[-2]
    by_token = gradient[0].clamp(min=0).mean(dim=0).sum(dim=0) / queries
    return by_token[-patches:]  # the class token and registers come first


def _attention_pool(tower: nn.Module) -> nn.Module | None:
    """Return the module that pools a tower's tokens by attention; None where there is none."""
    for owner in (tower, getattr(tower, "trunk", tower)):
        for name in ("attn_pool", "attnpool"):
            found = getattr(owner, name, None)
            if isinstance(found, nn.Module):
                return found
    return None


def _grid(tower: nn.Module, preprocess: Preprocessing) -> tuple[int, int] | None:
    """Return rows and columns of what a tower attends to; None if it is convolutional, or attends within windows."""
    if isinstance(tower, VisionTransformer):
        rows, columns = tower.grid_size
        return int(rows), int(columns)
    if isinstance(tower, ModifiedResNet):
        return preprocess.size[0] // 32, preprocess.size[1] // 32
    trunk = tower.trunk if isinstance(tower, TimmModel) else None
    # of timm's towers, those with tokens before the patches' are plain ones
    if trunk is None or not hasattr(trunk, "num_prefix_tokens") or not hasattr(trunk, "patch_embed"):
        return None
    grid = getattr(trunk.patch_embed, "grid_size", None)
    return None if grid is None else (int(grid[0]), int(grid[1]))


class _Attention(TorchFunctionMode):
    """Computes attention step by step while it is active, and keeps its weights, (1, heads, queries, tokens) each."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            return self._attend_with_heads(*args, **kwargs), None
        return func(*args, **kwargs)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **options: Any
    ) -> Tensor:
        scale = options.get("scale") or query.shape[-1] ** -0.5
        logits = (query * scale) @ key.transpose(-2, -1)
        weights = (logits if attn_mask is None else logits + attn_mask).softmax(dim=-1)
        if not weights.requires_grad:
            weights.requires_grad_()
        self.weights.append(weights)
        attended: Tensor = weights @ value
        return attended

    def _attend_with_heads(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
        """Compute torch's `multi_head_attention_forward` of one picture: (queries, 1, width) to the same shape."""
        given = dict(zip(_HEADS_ARGUMENTS, args, strict=False)) | options
        weights = given["in_proj_weight"]
        if weights is None:
            parts = [given[name] for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight")]
        else:
            parts = list(weights.chunk(3))
        biases = [None] * 3 if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
        heads = given["num_heads"]
        projected = [
            # tokens, 1, width -> 1, heads, tokens, width / heads
            functional.linear(x, weight, bias).view(len(x), 1, heads, -1).permute(1, 2, 0, 3)
            for x, weight, bias in zip((query, key, value), parts, biases, strict=True)
        ]
        attended = self._attend(*projected)
        # 1, heads, queries, width / heads -> queries, 1, width
        joined = attended.permute(2, 0, 1, 3).flatten(2)
        return functional.linear(joined, given["out_proj_weight"], given["out_proj_bias"])
