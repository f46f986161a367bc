"""Computes the last block of an image tower for the class token only.

In CLIP's vision transformers the features are the class token's. In the last block the other tokens are needed as keys
and values only: skipping the rest of their computation saves most of one of ViT-B/32's twelve blocks, and changes no
feature.
"""

from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention


def compute_first_token_only(tower: nn.Module) -> None:
    """Make the last block compute its first token only, if the tower's features are that token's; else do nothing."""
    if not isinstance(tower, VisionTransformer) or tower.output_tokens:
        return
    blocks = tower.transformer.resblocks
    pooled_alone = tower.attn_pool is None and tower.pool_type == "tok"
    if pooled_alone and len(blocks) and type(blocks[-1]) is ResidualAttentionBlock and blocks[-1].attn.batch_first:
        blocks[-1].__class__ = FirstTokenBlock


class FirstTokenBlock(ResidualAttentionBlock):  # type: ignore[misc]
    """A residual attention block that returns the first token only.

    Source: Dosovitskiy et al. 2021, section 3.1, https://arxiv.org/abs/2010.11929
    """

    def forward(self, q_x: Tensor, *_: Tensor | None, **__: Tensor | None) -> Tensor:
        """Compute the block's output for the first token.

        Args:
            q_x: `(n, length, width)`.

        Returns:
            `(n, 1, width)`.
        """
        first = q_x[:, :1] + self.ls_1(self._attended(self.ln_1(q_x)))
        output: Tensor = first + self.ls_2(self.mlp(self.ln_2(first)))
        return output

    def _attended(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        attn = self.attn
        heads = (attn.num_heads, attn.head_dim)
        query = linear(x[:, 0], attn.in_proj_weight[:width], attn.in_proj_bias[:width])
        both = linear(x, attn.in_proj_weight[width:], attn.in_proj_bias[width:])
        # n, length, 2 * width -> 2, n, heads, length, width / heads
        key, value = both.view(n, length, 2, *heads).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(query.view(n, 1, *heads).transpose(1, 2), key, value)
        output: Tensor = attn.out_proj(attended.transpose(1, 2).reshape(n, 1, width))
        return output
