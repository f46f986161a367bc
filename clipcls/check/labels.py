"""Check labels, templates and prompts: report all faults at once, and what could be better."""

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipcls.check.findings import Finding, error, note, ok, warning
from clipcls.errors import UsageError, quoted
from clipcls.labels.label_files import label_key, make_label, read_labels, refuse_duplicates, spelling_key, split_labels
from clipcls.labels.prompts import load_prompt_set, render, templates_set
from clipcls.predict.nearness import NEARLY_SAME, nearest_pairs
from clipcls.predict.ranking import Array
from clipcls.records import Label, PromptSet

# a template changes next to nothing if its prompts' mean cosine to the bare labels is above this
WITHOUT_EFFECT = 0.99
NEAREST_PAIRS = 5

_ARTICLE = re.compile(r"(a|an|the)\s", re.IGNORECASE)
_ARTICLE_BEFORE_LABEL = re.compile(r"\b(a|an|the)\s+\{(c|label)?\}", re.IGNORECASE)
_BARE = re.compile(r"\s*\{(c|label)?\}\s*")
_NO_WORD = re.compile(r"n\d{8}|\d+")  # WordNet's identifiers, numbers of classes
_MEDIAN_OF = 1000


@dataclass(frozen=True, slots=True)
class Wording:
    """Labels and prompts as the options of `clipcls predict` give them."""

    labels: str | None = None
    label: tuple[str, ...] = ()
    labels_file: str | Path | None = None
    prompts: str | None = None
    templates: tuple[str, ...] = ()

    @property
    def has_labels(self) -> bool:
        """Whether any labels were given, valid or not."""
        return self.labels is not None or bool(self.label) or self.labels_file is not None


def read_label_options(wording: Wording) -> tuple[list[Label], list[Finding]]:
    """Return the labels that can be used, without duplicates, and what is wrong with the others."""
    labels: list[Label] = []
    findings: list[Finding] = []
    text = wording.labels or ""
    names = [name.strip() for name in text.split(",") if name.strip()]
    with _reported("labels", findings):
        names = split_labels([] if wording.labels is None else [text])
    for name in [*names, *wording.label]:
        with _reported("labels", findings):
            labels.append(make_label(name))
    if wording.labels_file is not None:
        with _reported("labels", findings):
            labels += read_labels(wording.labels_file)
    return _without_duplicates(labels, findings), findings


def read_prompt_options(wording: Wording, own: PromptSet | None) -> tuple[PromptSet | None, list[Finding]]:
    """Return the templates that can be used, or None, and what is wrong with the others.

    Args:
        own: the templates that the model was trained with, if it states them.
    """
    findings: list[Finding] = []
    if not wording.templates:
        with _reported("prompts", findings):
            if wording.prompts is None and own is not None:
                return own, findings
            return load_prompt_set(wording.prompts or "default"), findings
        return None, findings
    if wording.prompts is not None:
        findings.append(error("prompts", UsageError("Give --prompts or --template, not both.")))
    good: list[str] = []
    for template in wording.templates:
        with _reported("template", findings):
            good += templates_set([template]).templates
    return (templates_set(good) if good else None), findings


def check_labels(labels: Sequence[Label]) -> Iterator[Finding]:
    """Check labels as far as that needs no model."""
    if len(labels) == 1:
        split = " It has commas: --labels splits at them, --label and a .txt file don't." * ("," in labels[0].name)
        yield warning(
            "labels",
            f"there is one label only, {labels[0].name!r}: its softmax score is always 1",
            f"Add labels for what else is in the pictures, or score with --score cosine.{split}",
        )
    lists = [label.name for label in labels if label.name.count(",") > 1 and not label.prompts]
    if lists and len(labels) > 1:
        yield note(
            "labels",
            f"{quoted(lists)}: prompted with all the commas",
            "If these are synonyms, list them as such in a labels file, and each gets prompts of its own.",
        )
    numbers = [label.name for label in labels if all(_NO_WORD.fullmatch(text) for text in label.texts)]
    if numbers:
        yield note(
            "labels",
            f"{quoted(numbers)}: a number to you, a text to the model",
            "If these are numbers of classes, use the classes' names.",
        )
    yield from _check_spelling(labels)


def check_templates(labels: Sequence[Label], prompts: PromptSet) -> Iterator[Finding]:
    """Check templates and the prompts that they make, as far as that needs no model."""
    templated = [label for label in labels if not label.prompts]
    twice = {template for template in prompts.templates if prompts.templates.count(template) > 1}
    if twice:
        yield note("template", f"{quoted(sorted(twice))}: there more than once, and counts as often", "Remove copies.")
    articles = [label.name for label in templated if any(_ARTICLE.match(text) for text in label.texts)]
    doubling = [template for template in prompts.templates if _ARTICLE_BEFORE_LABEL.search(template)]
    if articles and doubling:
        label = next(label for label in templated if label.name == articles[0])
        prompt = render(label, PromptSet("", (doubling[0],)))[0]
        yield warning(
            "labels",
            f"{quoted(articles)}: the label's article follows the template's, as in {prompt!r}",
            "Leave the article out of the label.",
        )
    seen: dict[tuple[str, ...], str] = {}
    for label in labels:
        rendered = render(label, prompts)
        if rendered in seen:
            yield error("prompts", UsageError(f"Labels {seen[rendered]!r} and {label.name!r} have the same prompts."))
        seen.setdefault(rendered, label.name)


def check_nearness(names: Sequence[str], features: Array) -> Iterator[Finding]:
    """Warn of labels that are nearly the same to the model, and list the next nearest pairs.

    Args:
        features: (n_labels, embed_dim) float32, L2-normalised.
    """
    if len(names) < 2:
        return
    pairs, nearly_same = nearest_pairs(features, 2 * NEAREST_PAIRS)
    same, others = pairs[: min(nearly_same, NEAREST_PAIRS)], pairs[nearly_same:][:NEAREST_PAIRS]
    for pair in same:
        yield warning(
            "labels",
            f"{names[pair.first]!r} and {names[pair.second]!r} are nearly the same to the model: "
            f"cosine {pair.cosine:.3f}",
            "Merge them, as synonyms of one label, or say more clearly what tells them apart.",
        )
    if nearly_same > len(same):
        yield warning("labels", f"{nearly_same - len(same):,} more pairs with a cosine of {NEARLY_SAME} or more")
    if others:
        shown = "; ".join(f"{names[pair.first]!r} and {names[pair.second]!r} {pair.cosine:.3f}" for pair in others)
        yield note("labels", f"nearest pairs, by cosine: {shown}; the median of all pairs is {_median(features):.3f}")


def check_own_prompts(own: PromptSet, prompts: PromptSet, own_features: Array, features: Array) -> Iterator[Finding]:
    """Compare a prompt set with the one that the model was trained with.

    Args:
        own_features: of the labels, with the model's own prompts, (n_labels, embed_dim) float32, L2-normalised.
        features: the same with the other prompts.
    """
    # a label's features with the one set and with the other
    same = float((own_features * features).sum(axis=1).mean())
    yield warning(
        "prompts",
        f"the model was trained with {quoted(own.templates)}, not with {prompts.name!r}: the mean cosine of a label's "
        f"features by the one and by the other is {same:.2f}; of different labels' it is "
        f"{_mean_cosine(own_features):.2f} by its own, {_mean_cosine(features):.2f} by these",
        "Leave --prompts and --template out to use its own, or compare both on labelled pictures with clipcls eval.",
    )


def _mean_cosine(features: Array) -> float:
    """Return the mean cosine of two different labels; 1 for a single one."""
    count = len(features)
    if count == 1:
        return 1.0
    total = features.sum(axis=0, dtype=np.float64)
    return float((total @ total - count) / (count * (count - 1)))


def check_effects(templates: Sequence[str], cosines: Sequence[float]) -> Iterator[Finding]:
    """Report templates that change next to nothing.

    Args:
        cosines: mean cosine of each template's prompts to the bare labels.
    """
    weak = [(template, cosine) for template, cosine in zip(templates, cosines, strict=True) if cosine > WITHOUT_EFFECT]
    if not weak:
        return
    shown = "; ".join(f"{template!r} {cosine:.4f}" for template, cosine in weak[:NEAREST_PAIRS])
    more = f" and {len(weak) - NEAREST_PAIRS} more" if len(weak) > NEAREST_PAIRS else ""
    yield note(
        "template",
        f"{len(weak)} of {len(templates)} change next to nothing, by the cosine of their prompts to the bare labels: "
        f"{shown}{more}",
        "Leave them out, or say more of the pictures.",
    )


def is_bare(template: str) -> bool:
    """Tell whether a template is nothing but its placeholder."""
    return _BARE.fullmatch(template) is not None


def summary(labels: Sequence[Label], prompts: PromptSet) -> Finding:
    """Report the numbers of labels, templates and prompts."""
    texts = sum(len(render(label, prompts)) for label in labels)
    count, templates = len(labels), len(prompts.templates)
    said = f"{count:,} label{'s' * (count != 1)}, {templates} template{'s' * (templates != 1)} ({prompts.name})"
    return ok("labels", f"{said}, {texts:,} prompt{'s' * (texts != 1)}")


def _check_spelling(labels: Sequence[Label]) -> Iterator[Finding]:
    groups: dict[str, list[str]] = {}
    for label in labels:
        groups.setdefault(spelling_key(label.name), []).append(label.name)
    for key, names in groups.items():
        if key and len(names) > 1:
            yield note("labels", f"{quoted(names)}: differ in punctuation or spaces only", "Keep one, if they are one.")


def _without_duplicates(labels: Iterable[Label], findings: list[Finding]) -> list[Label]:
    """Keep the first of each group of labels that `refuse_duplicates` would refuse, and report the others."""
    kept: list[Label] = []
    owners: dict[str, Label] = {}
    for label in labels:
        keys = [label_key(text) for text in label.texts]
        same = next((owners[key] for key in keys if key in owners), None)
        if same is None:
            kept.append(label)
            owners |= dict.fromkeys(keys, label)
        else:
            with _reported("labels", findings):
                refuse_duplicates([same, label])
    with _reported("labels", findings):
        refuse_duplicates(kept)
    return kept


def _median(features: Array) -> float:
    step = -(-len(features) // _MEDIAN_OF)
    sample = features[::step]
    cosines = sample @ sample.T
    return float(np.median(cosines[np.triu_indices(len(sample), k=1)]))


@contextmanager
def _reported(subject: str, findings: list[Finding]) -> Iterator[None]:
    """Append a UsageError raised in the block to the findings."""
    try:
        yield
    except UsageError as exc:
        findings.append(error(subject, exc))
