"""Self-attention that computes queries, keys and values in one product.

torch's `MultiheadAttention` swaps batch and sequence before it projects them, unless it can take its fast path (no
gradients, no mask). The swapped tensor isn't contiguous, so that its linear layer is computed as one small product per
token, each with a copy of the weights: more than half of the text tower's time on a CPU in bf16 (torch 2.15, ViT-B/32,
AMX), some 8 % of a training step's. Here the batch stays in front.
"""

from typing import Any

from torch import Tensor, is_grad_enabled, nn
from torch.nn.functional import linear, scaled_dot_product_attention


def keep_batch_first(tower: nn.Module) -> nn.Module:
    """Make every plain self-attention of a tower compute with the batch in front; weights and names stay."""
    for module in tower.modules():
        if type(module) is nn.MultiheadAttention and _is_plain(module):
            module.__class__ = SelfAttention
    return tower


def _is_plain(attention: nn.MultiheadAttention) -> bool:
    """Return whether it is batch first, has one width, and adds nothing to the sequence."""
    return bool(
        attention.batch_first
        and attention._qkv_same_embed_dim
        and attention.bias_k is None
        and attention.bias_v is None
        and not attention.add_zero_attn
    )


class SelfAttention(nn.MultiheadAttention):
    """`MultiheadAttention` of a sequence with itself.

    Source: Vaswani et al. 2017, section 3.2.2, https://arxiv.org/abs/1706.03762
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute the attention of a sequence to itself.

        Args:
            query: `(n, length, width)`; `key` and `value` have to be the same tensor.
            attn_mask: added to the logits, `(length, length)` or larger.

        Returns:
            The output, `(n, length, width)`, and None instead of the attention weights.
        """
        own = query is key and key is value and query.ndim == 3
        # without gradients and mask, torch's own fast path is as quick, and gives what other programs compute
        fast = attn_mask is None and not self.training and not is_grad_enabled()
        added = attn_mask is None or (attn_mask.ndim == 2 and attn_mask.is_floating_point())
        if not own or not added or need_weights or key_padding_mask is not None or fast:
            return super().forward(query, key, value, key_padding_mask, need_weights, attn_mask, *args, **kwargs)
        n, length, width = query.shape
        if attn_mask is not None:
            attn_mask = attn_mask[:length, :length]  # the mask is made for the longest text
        projected = linear(query, self.in_proj_weight, self.in_proj_bias)
        # n, length, 3 * width -> 3, n, heads, length, width / heads
        parts = projected.view(n, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        attended = scaled_dot_product_attention(parts[0], parts[1], parts[2], attn_mask=attn_mask, dropout_p=dropout)
        # n, heads, length, width / heads -> n, length, width
        output: Tensor = self.out_proj(attended.transpose(1, 2).reshape(n, length, width))
        return output, None
