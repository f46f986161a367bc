"""Check all that `predict` needs besides pictures: the model, its weights, labels and prompts.

`predict` stops at the first fault; this reports all of them in one run.
"""

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace

import numpy as np

from clipcls.check.audit import Audit, audit_words, read_categories
from clipcls.check.findings import Finding, error, note, ok, warning
from clipcls.check.labels import (
    Wording,
    check_effects,
    check_labels,
    check_nearness,
    check_own_prompts,
    check_templates,
    is_bare,
    read_label_options,
    read_prompt_options,
    summary,
)
from clipcls.check.model import SoundModel, check_model
from clipcls.check.weights import is_unreadable
from clipcls.embed.execution import Execution
from clipcls.embed.prepare import read_quantised
from clipcls.embed.session import Session
from clipcls.embed.texts import embed_texts, truncated_message
from clipcls.errors import ClipclsError, UsageError, quoted
from clipcls.labels import vocabulary
from clipcls.labels.prompts import read_model_prompts, render
from clipcls.models.catalog import model_folder
from clipcls.models.tokenizer import context_length_of, truncated
from clipcls.predict.ranking import Array, best_labels
from clipcls.records import Label, ModelSpec, PromptSet

# share of the pictures with a clear label in fp32, whose logit is 1 above the next, that should keep it in int8
_MOST_AGREE = 0.99
# number of labels that each template is tried on
_SAMPLE = 8

Texts = tuple[Sequence[Label], PromptSet]
Report = Callable[[int, int], None]


def preflight(
    spec: ModelSpec, wording: Wording, execution: Execution, report: Report | None = None, audit: Audit | None = None
) -> Iterator[Finding]:
    """Check a model, and the labels and prompts if there are any.

    Args:
        execution: names the cache, where `predict` will find the texts' features; `strict_prompts` turns prompts over
            the context length into errors.
        report: called with the numbers of labels done and to do, as they are embedded.
        audit: pictures to look at words that hurt people on, beside the labels; None for none.

    Yields:
        Findings, as they are made.
    """
    own, own_findings = _own_prompts(spec)
    yield from own_findings
    labels, prompts = yield from _read(wording, own)  # before a model is downloaded
    with contextlib.closing(execution.open_cache()) as cache:
        model = yield from check_model(spec, cache)
        if not wording.has_labels:
            yield note("labels", "none were given, so that only the model was checked", "Give --labels as to predict.")
            return
        texts = yield from _check_wording(labels, prompts, model, execution.strict_prompts)
        if texts is not None and model is not None and model.encoder is not None:
            # in int8 texts are embedded in fp32
            full = replace(spec, precision="fp32") if spec.precision == "int8" else spec
            session = Session(full, execution, cache)
            features = yield from _check_features(*texts, own, session, report)
            if spec.precision == "int8" and features is not None:
                yield from _check_quantised(features, session)
            if audit is not None and features is not None:
                yield from audit_words(audit, features, texts[1], session, read_categories())


def _own_prompts(spec: ModelSpec) -> tuple[PromptSet | None, list[Finding]]:
    """Return the templates that the model was trained with, if its folder states them, and what is wrong with them."""
    try:
        return read_model_prompts(model_folder(spec.name)), []
    except UsageError as exc:
        return None, [error("prompts", exc)]


def _read(wording: Wording, own: PromptSet | None) -> Generator[Finding, None, tuple[list[Label], PromptSet | None]]:
    """Read labels and templates; returns those that can be used."""
    labels, findings = read_label_options(wording) if wording.has_labels else ([], [])
    prompts, prompt_findings = read_prompt_options(wording, own)
    yield from [*findings, *prompt_findings]
    return labels, prompts


def _check_wording(
    labels: Sequence[Label], prompts: PromptSet | None, model: SoundModel | None, strict: bool
) -> Generator[Finding, None, Texts | None]:
    """Check labels and templates; returns them if they can be used."""
    yield from check_labels(labels)
    if not labels or prompts is None:
        return None
    yield summary(labels, prompts)
    yield from check_templates(labels, prompts)
    if model is None:
        yield note("prompts", "the model isn't there to read them, so nothing more was checked of them")
        return None
    yield from _check_known_words(labels, model)
    yield from _check_lengths(labels, prompts, model, strict)
    return labels, prompts


def _check_known_words(labels: Sequence[Label], model: SoundModel) -> Iterator[Finding]:
    unknown = []
    if (words := model.files.words) is not None:
        unknown = vocabulary.unknown_labels(labels, words)
    if unknown:
        yield warning(
            "labels",
            f"the model was never trained on a word of {quoted(unknown)}; scores for "
            f"{'it' if len(unknown) == 1 else 'them'} mean nothing",
            "Use words that it knows, or a model that was trained on more.",
        )
    if (tokenizer := model.tokenizer) is None:
        return
    texts = {label.name: (*label.texts, *label.prompts) for label in labels}
    unreadable = [name for name, of_label in texts.items() if all(is_unreadable(tokenizer, text) for text in of_label)]
    if unreadable:
        yield warning(
            "labels",
            f"the model's tokenizer knows no part of {quoted(unreadable)}",
            "Write it in a language, or a script, that the model was trained on.",
        )


def _check_lengths(labels: Sequence[Label], prompts: PromptSet, model: SoundModel, strict: bool) -> Iterator[Finding]:
    if model.tokenizer is None:
        return
    rendered = list(dict.fromkeys(prompt for label in labels for prompt in render(label, prompts)))
    cut = [prompt for prompt, is_cut in zip(rendered, truncated(model.tokenizer, rendered), strict=True) if is_cut]
    if not cut:
        return
    message = truncated_message(cut, context_length_of(model.files))
    remedy = "Shorten the label or the template."
    yield (
        error("prompts", UsageError(f"--strict-prompts: {message}"), remedy)
        if strict
        else warning("prompts", message, remedy)
    )


def _check_features(
    labels: Sequence[Label], prompts: PromptSet, own: PromptSet | None, session: Session, report: Report | None
) -> Generator[Finding, None, Array | None]:
    """Check the labels' features; returns them if they can be computed."""

    def embed(templates: PromptSet) -> Array:
        texts = embed_texts([render(label, templates) for label in labels], session, report=report)
        return np.stack([text.features for text in texts])

    try:
        features = embed(prompts)
        yield from check_nearness([label.name for label in labels], features)
        if own is not None and set(own.templates) != set(prompts.templates):
            yield from check_own_prompts(own, prompts, embed(own), features)
        yield from _check_effects(labels, prompts, session)
    except ClipclsError as exc:
        yield error("prompts", exc)
        return None
    return features


def _check_quantised(label_features: Array, session: Session) -> Iterator[Finding]:
    """Compare the model in int8 with fp32, on the pictures that were held out when it was quantised."""
    try:
        quantised = read_quantised(session)
    except ClipclsError as exc:
        yield error("precision", exc)
        return
    full, reduced = quantised.features @ label_features.T  # each (n, n_labels)
    ranked = np.sort(full, axis=1)
    is_clear = (ranked[:, -1] - ranked[:, :-1].max(axis=1, initial=-1.0)) * np.exp(session.facts.logit_scale) >= 1.0
    same = best_labels(full, full)[is_clear] == best_labels(reduced, reduced)[is_clear]
    message = f"{quantised.described}; {same.sum():,} of the {same.size:,} with a clear label in fp32 have the same"
    if same.size and same.mean() < _MOST_AGREE:
        yield warning("precision", message, "Take --precision bf16 or fp32, or quantise on pictures of the job.")
    else:
        yield ok("precision", message)


def _check_effects(labels: Sequence[Label], prompts: PromptSet, session: Session) -> Iterator[Finding]:
    """Compare each template's prompts with the bare labels, for a sample of labels."""
    templated = [replace(label, texts=label.texts[:1]) for label in labels if not label.prompts]
    sample = templated[:: -(-len(templated) // _SAMPLE) or 1]
    templates = [template for template in dict.fromkeys(prompts.templates) if not is_bare(template)]
    if not sample or not templates:
        return
    filled = [render(label, PromptSet("", (template,))) for template in ("{}", *templates) for label in sample]
    features = np.stack([text.features for text in embed_texts(filled, session)])
    # (1 + n_templates, n_labels, embed_dim)
    bare, *others = features.reshape(1 + len(templates), len(sample), -1)
    yield from check_effects(templates, [float((other * bare).sum(-1).mean()) for other in others])
