"""The figures of an attack."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipcls.evaluate import metrics
from clipcls.evaluate.attacks.pictures import Variant
from clipcls.evaluate.attacks.text import BLANK, PLACES, Notes
from clipcls.evaluate.groups import GroupShare
from clipcls.evaluate.metrics import Estimate, Statistic
from clipcls.evaluate.results import estimate_record, failure_record
from clipcls.predict.ranking import Flags, Indices


@dataclass(frozen=True, slots=True)
class VariantFigures:
    """How the answers hold where pictures are changed in one way.

    Attributes:
        accuracy: on the changed pictures.
        drop: the accuracy on the pictures as they are, minus this one.
        relative_drop: the drop as a share of the accuracy on the pictures as they are; NaN where that is 0.
        success: how often the written label becomes the answer, among pictures that it wasn't the answer to; by made-up
            noise, how many of the right answers fall. None of faults.
    """

    variant: Variant
    accuracy: Estimate
    drop: Estimate
    relative_drop: Estimate
    success: GroupShare | None = None


@dataclass(frozen=True, slots=True)
class FaultFigures:
    """The relative drop by one kind of fault, as the mean of its severities."""

    name: str
    relative_drop: Estimate


@dataclass(frozen=True, slots=True)
class NoteFigures:
    """What notes of the largest size do.

    Attributes:
        labels: how often each label becomes the answer where it is written, by its name.
        places: how often the written label becomes the answer, by the note's place.
        found: how many of the pictures that the written label became the answer to are told by one more label, for the
            note itself; None where the model doesn't know the word.
        lost: how many of the right answers to pictures as they are that label spoils.
    """

    labels: Mapping[str, GroupShare]
    places: Mapping[str, GroupShare]
    found: GroupShare | None = None
    lost: GroupShare | None = None


@dataclass(frozen=True, slots=True)
class AttackOutcome:
    """An attack on the answers of one model.

    Attributes:
        kind: `text`, `corrupt` or `adversarial`.
        images: the number of images in the data, of which `chosen` were to be attacked.
        measured: the number of images in the figures.
        plain: the accuracy on the pictures as they are.
        faults: of `corrupt`, the worst first; empty for others.
        notes: of `text`.
        failed: path and error of each image that couldn't be read.
        problems: messages about the data.
    """

    kind: str
    model: str
    prompts: str
    seed: int
    images: int
    chosen: int
    measured: int
    labels: tuple[str, ...]
    plain: Estimate
    variants: tuple[VariantFigures, ...]
    faults: tuple[FaultFigures, ...] = ()
    notes: NoteFigures | None = None
    failed: tuple[tuple[str, str], ...] = ()
    problems: tuple[str, ...] = ()


#: The accuracy on pictures as they are, the figures of variants, and those of kinds of faults.
Judged = tuple[Estimate, tuple[VariantFigures, ...], tuple[FaultFigures, ...]]


def judge_variants(
    plain: Flags,
    attacked: Flags,
    variants: Sequence[Variant],
    became: Flags | None = None,
    other: Flags | None = None,
) -> Judged:
    """Compute the accuracy on pictures as they are, and the figures of each variant and each kind of fault.

    Args:
        plain: (n,) bool, whether a picture is answered right as it is.
        attacked: (n_variants, n) bool, whether it is where it is changed.
        became: (n_variants, n) bool, whether an attack has what it wants, such as the written label as the answer;
            None where it wants nothing.
        other: (n,) bool, whether it doesn't have that without the change.
    """
    statistics: dict[str, Statistic] = {"plain": metrics.mean(plain)}
    lost = plain.astype(np.float64) - attacked
    names = list(dict.fromkeys(variant.name for variant in variants))
    for row in range(len(variants)):
        statistics[f"accuracy {row}"] = metrics.mean(attacked[row])
        statistics[f"drop {row}"] = metrics.mean(lost[row])
        statistics[f"relative drop {row}"] = metrics.ratio(lost[row], plain)
    for name in names:
        rows = [row for row, variant in enumerate(variants) if variant.name == name]
        statistics[f"fault {name}"] = metrics.ratio(lost[rows].mean(axis=0), plain)
    # one set of resamples for all, so that figures of one picture stay together
    figures = metrics.bootstrap(statistics, len(plain))
    of_variants = tuple(
        VariantFigures(
            variant,
            figures[f"accuracy {row}"],
            figures[f"drop {row}"],
            figures[f"relative drop {row}"],
            None if became is None or other is None else GroupShare(int((became[row] & other).sum()), int(other.sum())),
        )
        for row, variant in enumerate(variants)
    )
    faults = [FaultFigures(name, figures[f"fault {name}"]) for name in names]
    faults.sort(key=lambda fault: -np.nan_to_num(fault.relative_drop.value, nan=-1.0))
    return figures["plain"], of_variants, tuple(faults)


def judge_notes(notes: Notes, became: Flags, other: Flags, names: Sequence[str]) -> NoteFigures:
    """Count how often each label becomes the answer where it is written, and by the note's place.

    Args:
        became: (n,) bool, whether the written label is the answer.
        other: (n,) bool, whether it wasn't before.
    """

    def shares(group: Indices, of: Sequence[str]) -> dict[str, GroupShare]:
        counts = (
            (name, int((became & other & (group == index)).sum()), int((other & (group == index)).sum()))
            for index, name in enumerate(of)
        )
        return {name: GroupShare(part, whole) for name, part, whole in counts if whole}

    return NoteFigures(shares(notes.labels, names), shares(notes.places, list(PLACES)))


def attack_record(outcome: AttackOutcome) -> dict[str, Any]:
    """Return the figures of an attack in JSON's types."""
    return {
        "attack": outcome.kind,
        "model": outcome.model,
        "prompts": outcome.prompts,
        "seed": outcome.seed,
        "images": outcome.images,
        "chosen": outcome.chosen,
        "measured": outcome.measured,
        "labels": list(outcome.labels),
        "accuracy": estimate_record(outcome.plain),
        "variants": [_variant_record(figures) for figures in outcome.variants],
        **(
            {"faults": [{"name": f.name, "relative_drop": estimate_record(f.relative_drop)} for f in outcome.faults]}
            if outcome.faults
            else {}
        ),
        **({} if outcome.notes is None else {"notes": _notes_record(outcome.notes)}),
        "failed": [failure_record(path, error) for path, error in outcome.failed],
        "problems": list(outcome.problems),
    }


def _variant_record(figures: VariantFigures) -> dict[str, Any]:
    variant = figures.variant
    return {
        "name": variant.name,
        "severity": variant.severity,
        "strength": variant.strength,
        "accuracy": estimate_record(figures.accuracy),
        "drop": estimate_record(figures.drop),
        "relative_drop": estimate_record(figures.relative_drop),
        **({} if figures.success is None else {"success": _share_record(figures.success)}),
    }


def _notes_record(notes: NoteFigures) -> dict[str, Any]:
    return {
        "success_by_label": {name: _share_record(share) for name, share in notes.labels.items()},
        "success_by_place": {name: _share_record(share) for name, share in notes.places.items()},
        "found_by_note_label": None if notes.found is None else _share_record(notes.found),
        "lost_to_note_label": None if notes.lost is None else _share_record(notes.lost),
    }


def _share_record(share: GroupShare) -> dict[str, float | int | None]:
    value = share.value if share.whole else None
    low, high = (share.low, share.high) if share.whole else (None, None)
    return {"part": share.part, "whole": share.whole, "value": value, "low": low, "high": high}


def largest_note(variants: Sequence[Variant]) -> int:
    """Return the index of the variant with the largest written note."""
    return max(row for row, variant in enumerate(variants) if variant.name != BLANK)
