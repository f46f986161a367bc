"""Cuts off the padding behind texts, which a causal text tower would compute in vain.

In CLIP's text towers a token sees only those before it, and the features are those at the text's end. So the tokens
behind the longest text of a batch can be left out: a prompt of 10 of 77 tokens costs a fifth, and the features are
the same.
"""

from typing import Any

import torch
from torch import Tensor

from clipcls.models.text_length import cut_length


def without_padding(tower: Any, tokens: Tensor) -> Tensor:
    """Cut off the tokens behind the end of the longest text, if the tower ignores them.

    Args:
        tower: open_clip's text tower, or the model that holds its parts itself.
        tokens: `(n_texts, context_length) int64`; on the CPU, since their values are read.

    Returns:
        `(n_texts, length) int64`; the uncut tokens for a tower that sees padding.
    """
    if not sees_no_padding(tower):
        return tokens
    return tokens[:, : cut_length(tokens.numpy(), end_token(tower))]


def cut_to_length(tower: Any, tokens: Tensor) -> dict[str, Tensor]:
    """Return the tower's tensors of the context's length, cut to the tokens', for `torch.func.functional_call`."""
    length = tokens.shape[1]
    if not sees_no_padding(tower) or length == len(tower.positional_embedding):
        return {}
    return {
        "positional_embedding": tower.positional_embedding[:length],
        "attn_mask": tower.attn_mask[:length, :length],
    }


def sees_no_padding(tower: Any) -> bool:
    """Tell whether a text tower's features don't depend on the tokens behind a text's end."""
    causal = isinstance(getattr(tower, "attn_mask", None), Tensor)
    has_class_token = getattr(tower, "cls_emb", None) is not None
    positions = isinstance(getattr(tower, "positional_embedding", None), torch.nn.Parameter)
    return causal and positions and not has_class_token and _pooling(tower) in ("argmax", "eos")


def end_token(tower: Any) -> int | None:
    """Return the token at whose place a text's features are; None where that is each text's greatest token."""
    if _pooling(tower) != "eos":
        return None
    token: int = tower.eos_id if hasattr(tower, "eos_id") else tower.text_eos_id
    return token


def _pooling(tower: Any) -> str | None:
    return getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
