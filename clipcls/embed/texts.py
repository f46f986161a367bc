"""Turn prompts into the averaged embeddings of labels."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from clipcls.embed.batches import Batches
from clipcls.embed.cache.entries import CachedText, text_key
from clipcls.embed.session import Session
from clipcls.errors import UsageError, shortened

if TYPE_CHECKING:
    from clipcls.models.encoder import Encoder
    from clipcls.models.runtime.compiled import CompiledEncoder

logger = logging.getLogger(__name__)

TEXT_BATCH = 64


def embed_texts(
    prompts: Sequence[tuple[str, ...]],
    session: Session,
    *,
    strict: bool = False,
    report: Callable[[int, int], None] | None = None,
) -> list[CachedText]:
    """Return the averaged embedding of each label's prompts: normalised, averaged, normalised again.

    The model is opened only if some embedding isn't cached. Embeddings are cached as they are computed, so that an
    interrupted run goes on where it was.

    Args:
        prompts: at least one for each label.
        strict: refuse prompts over the context length before any is embedded.
        report: called with the numbers of labels done and to do, as they are embedded.

    Raises:
        UsageError: with `strict`, a prompt is over the context length.

    Source: prompt ensembling, Radford et al. 2021, section 3.1.4, https://arxiv.org/abs/2103.00020
    """
    facts, cache = session.facts, session.cache
    # in fp32, which the text tower of an int8 model has as well, both runtimes agree to 1e-5
    numbers = "fp32" if facts.precision in ("fp32", "int8") else facts.numbers
    keys = [text_key(facts.fingerprint, numbers, label_prompts) for label_prompts in prompts]
    cached = {key: text for key, text in cache.get_texts(keys).items() if _is_sound(text, facts.embed_dim)}
    # equal prompts, such as a label's and the background's, are embedded once
    missing = {key: label_prompts for key, label_prompts in zip(keys, prompts, strict=True) if key not in cached}
    logger.info("texts: %d of %d from the cache", len(keys) - sum(key in missing for key in keys), len(keys))
    if strict:
        _refuse_truncated(list(cached.values()), list(missing.values()), session)
    if not missing:
        return [cached[key] for key in keys]
    encoder = session.encoder
    batches = Batches(encoder.encode_text, TEXT_BATCH)
    done = 0
    for group in _groups(missing):
        new = dict(zip(group, _average_texts(list(group.values()), encoder, batches), strict=True))
        cache.put_texts(new)
        cached |= new
        done += len(group)
        if report is not None:
            report(done, len(missing))
    return [cached[key] for key in keys]


def truncated_message(cut: Sequence[str], context_length: int) -> str:
    """Return the message about prompts of which the model sees only the beginning."""
    more = f" (and {len(cut) - 1} more)" if len(cut) > 1 else ""
    return f"the model sees only the first {context_length} tokens of the prompt {shortened(cut[0])!r}{more}"


def _refuse_truncated(cached: Sequence[CachedText], missing: Sequence[tuple[str, ...]], session: Session) -> None:
    cut = [prompt for text in cached for prompt in text.truncated]
    flat = [prompt for label_prompts in missing for prompt in label_prompts]
    if flat:
        cut += [prompt for prompt, is_cut in zip(flat, session.encoder.truncated(flat), strict=True) if is_cut]
    if cut:
        message = truncated_message(cut, session.facts.context_length)
        raise UsageError(f"--strict-prompts: {message}. Shorten the label or the template.")


def _groups(prompts: dict[bytes, tuple[str, ...]]) -> Iterator[dict[bytes, tuple[str, ...]]]:
    """Yield the labels in groups with TEXT_BATCH prompts or a few more."""
    group: dict[bytes, tuple[str, ...]] = {}
    count = 0
    for key, label_prompts in prompts.items():
        group[key] = label_prompts
        count += len(label_prompts)
        if count >= TEXT_BATCH:
            yield group
            group, count = {}, 0
    if group:
        yield group


def _average_texts(
    prompts: Sequence[tuple[str, ...]], encoder: "Encoder | CompiledEncoder", batches: Batches[str]
) -> list[CachedText]:
    flat = [prompt for label_prompts in prompts for prompt in label_prompts]
    features = batches.encode(flat)
    truncated = encoder.truncated(flat)
    texts = []
    end = 0
    for label_prompts in prompts:
        start, end = end, end + len(label_prompts)
        mean = features[start:end].mean(axis=0)
        cut = tuple(flat[i] for i in range(start, end) if truncated[i])
        texts.append(CachedText(mean / np.linalg.norm(mean), cut))
    return texts


def _is_sound(text: CachedText, embed_dim: int) -> bool:
    """Tell whether a cached text has the right length and norm; otherwise it is damaged."""
    return text.features.shape == (embed_dim,) and bool(abs(np.linalg.norm(text.features) - 1.0) < 1e-3)
