"""Calibrations, which correct the scores of one model with one set of labels and prompts, and their files."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from clipcls.errors import UsageError, quoted
from clipcls.predict.ranking import LabelFeatures
from clipcls.predict.scores import SCORE_KINDS
from clipcls.text_files import read_text

CALIBRATION_VERSION = 1
_KEY = "clipcls_calibration"
_HEADER = "# Made by `clipcls calibrate`, for `clipcls predict --calibration`.\n"
# how much temperature and logit_scale may disagree, since files hold both rounded
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True)
class Basis:
    """The model, labels, prompts and settings that scores depend on.

    Attributes:
        model: its name, as the user asked for it.
        fingerprint: of the model, in hexadecimal digits.
        precision: of the model's numbers; another one changes scores only a little.
        decode: how pictures are decoded; another way changes scores only a little.
        prompt_set: the name of the prompt set.
        prompts: the result of `prompts_digest`.
        background: the prompt that labels are compared with; None where they aren't.
        taught: the digest of what examples taught, shortened; None for zero-shot scores.
    """

    model: str
    fingerprint: str
    precision: str
    decode: str
    kind: str
    multi_label: bool
    labels: tuple[str, ...]
    prompt_set: str
    prompts: str
    background: str | None = None
    taught: str | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """How thresholds were chosen.

    Attributes:
        target_precision: the precision that each threshold must reach; None for thresholds of the best F1.
        least: the number of answers that a label's threshold must rest on; for the best F1, of images of the label.
    """

    target_precision: float | None
    least: int


@dataclass(frozen=True, slots=True)
class LabelThreshold:
    """The threshold of one label, and the counts that it rests on.

    Attributes:
        threshold: None for a label that is never answered.
        images: the number of images of the label.
        answers: the number of answers that reach the threshold.
        right: the number of right ones among these.
        note: why there is no threshold, or why it wasn't fitted.
    """

    threshold: float | None
    images: int
    answers: int
    right: int
    note: str | None = None


@dataclass(frozen=True, slots=True)
class CalibrationOrigin:
    """Where a calibration comes from.

    Attributes:
        images: the number of images that it was fitted on.
        date: such as 2026-01-31.
        version: of clipcls.
    """

    images: int
    date: str
    version: str


@dataclass(frozen=True, slots=True)
class Calibration:
    """A correction of scores.

    Attributes:
        temperature: the divisor of the model's logits; None where the kind of score has none.
        logit_scale: replaces the model's, in log space; None where the kind of score has none.
        logit_bias: replaces the model's; None where the kind of score has none.
        rule: None where there are no thresholds.
        thresholds: in the order of the labels; empty where there are none.
        name: what messages call it.
    """

    basis: Basis
    origin: CalibrationOrigin
    temperature: float | None
    logit_scale: float | None
    logit_bias: float | None = None
    rule: Rule | None = None
    thresholds: tuple[LabelThreshold, ...] = ()
    name: str = field(default="The calibration", compare=False)

    @property
    def digest(self) -> str:
        """SHA-256 of all that changes scores and answers, in hexadecimal digits."""
        pairs = sorted(
            (label, found.threshold) for label, found in zip(self.basis.labels, self.thresholds, strict=False)
        )
        return _digest([self.logit_scale, self.logit_bias, pairs])

    def apply(self, labels: LabelFeatures) -> LabelFeatures:
        """Return the labels with scale, bias and thresholds corrected.

        Raises:
            UsageError: temperature and logit_scale contradict one another.
        """
        changed = labels
        if self.logit_scale is not None and self.temperature is not None:
            stated = math.exp(labels.logit_scale - self.logit_scale)
            if abs(stated - self.temperature) > _ROUNDING * self.temperature:
                raise UsageError(
                    f"{self.name}: with this model, logit_scale {self.logit_scale:g} is a temperature of {stated:g}, "
                    f"not {self.temperature:g}. Change both or neither."
                )
            changed = replace(changed, logit_scale=self.logit_scale)
        if self.logit_bias is not None:
            changed = replace(changed, logit_bias=self.logit_bias)
        if self.thresholds:
            changed = replace(changed, thresholds=self._thresholds(labels.names))
        return changed

    def _thresholds(self, names: Sequence[str]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Return the labels' thresholds, (n_labels,) float32; infinity for labels that are never answered."""
        found = dict(zip(self.basis.labels, self.thresholds, strict=True))
        values = [found[name].threshold for name in names]
        return np.array([math.inf if value is None else value for value in values], dtype=np.float32)

    def require(self, basis: Basis) -> list[str]:
        """Check that the calibration was made for such scores.

        Returns:
            Messages about differences that matter little.

        Raises:
            UsageError: it was made for other scores.
        """
        differing = _differences(self.basis, basis)
        if differing:
            raise UsageError(
                f"{self.name} was made for other scores: {'; '.join(differing)}. Use what it was made with, or make "
                "another one with `clipcls calibrate`."
            )
        pairs = {"precision": (self.basis.precision, basis.precision), "decode": (self.basis.decode, basis.decode)}
        return [f"--{option} {then} then, {now} now" for option, (then, now) in pairs.items() if then != now]


def prompts_digest(labels: Sequence[str], prompts: Sequence[Sequence[str]]) -> str:
    """Return the SHA-256 of the labels and their prompts, which doesn't depend on the order of the labels."""
    return _digest(sorted([label, *own] for label, own in zip(labels, prompts, strict=True)))


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()


def _differences(then: Basis, now: Basis) -> list[str]:
    found = []
    if then.fingerprint != now.fingerprint:
        why = ", with other weights or under another version of open_clip" if then.model == now.model else ""
        was, is_ = (f"{basis.model} ({basis.fingerprint[:12]})" for basis in (then, now))
        found.append(f"the model was {was} and is {is_}{why}")
    if (then.kind, then.multi_label) != (now.kind, now.multi_label):
        found.append(f"they were {_score_options(then)} and are {_score_options(now)}")
    if set(then.labels) != set(now.labels):
        missing, added = set(then.labels) - set(now.labels), set(now.labels) - set(then.labels)
        parts = [f"without {quoted(sorted(missing))}"] if missing else []
        found.append(f"the labels are {' and '.join([*parts, *([f'with {quoted(sorted(added))}'] if added else [])])}")
    elif then.prompts != now.prompts:
        found.append(f"the prompts differ ({then.prompt_set} then, {now.prompt_set} now)")
    if then.background != now.background and then.kind == now.kind:
        found.append(f"the background was {then.background!r} and is {now.background!r}")
    if then.taught != now.taught:
        was, is_ = (f"taught by --taught ({one.taught})" if one.taught else "zero-shot" for one in (then, now))
        found.append(f"they were {was} and are {is_}")
    return found


def _score_options(basis: Basis) -> str:
    return f"--score {basis.kind}{' --multi-label' if basis.multi_label else ''}"


# ---------------------------------------------------------------------------------------------------------
# The file


def calibration_text(calibration: Calibration) -> str:
    """Return the text of a calibration's file."""
    basis, rule = calibration.basis, calibration.rule
    data = {
        _KEY: CALIBRATION_VERSION,
        "model": {
            "name": basis.model,
            "fingerprint": basis.fingerprint,
            "precision": basis.precision,
            "decode": basis.decode,
        },
        "prompts": {"name": basis.prompt_set, "sha256": basis.prompts},
        "score": {
            "kind": basis.kind,
            "multi_label": basis.multi_label,
            "background": basis.background,
            **({} if basis.taught is None else {"taught": basis.taught}),
            "temperature": calibration.temperature,
            "logit_scale": calibration.logit_scale,
            "logit_bias": calibration.logit_bias,
        },
        "thresholds": None
        if rule is None
        else {"rule": "best F1", "least_images": rule.least}
        if rule.target_precision is None
        else {"rule": "precision", "target": rule.target_precision, "least_answers": rule.least},
        "labels": [{"name": name} for name in basis.labels]
        if rule is None
        else [_label_row(name, found) for name, found in zip(basis.labels, calibration.thresholds, strict=True)],
        # last, so that a truncated file lacks it
        "fitted_on": {
            "images": calibration.origin.images,
            "date": calibration.origin.date,
            "clipcls": calibration.origin.version,
        },
    }
    return _HEADER + yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10_000)


def _label_row(name: str, found: LabelThreshold) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "threshold": found.threshold}
    if found.note is not None:
        row["note"] = found.note
    row |= {"images": found.images, "answers": found.answers, "right": found.right}
    if found.answers:
        row["precision_between"] = [round(end, 4) for end in share_interval(found.right, found.answers)]
    return row


def read_calibration(path: Path) -> Calibration:
    """Read the file of a calibration.

    Raises:
        UsageError: the file can't be read, or isn't a valid calibration.
    """
    text = read_text(path)
    try:
        data = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as exc:
        problem = getattr(exc, "problem", None) or "it isn't text in YAML"
        raise UsageError(f"{path}: not a calibration: {problem}. Make one with `clipcls calibrate`.") from exc
    if not isinstance(data, dict) or _KEY not in data:
        raise UsageError(f"{path}: not a calibration: it doesn't say `{_KEY}`. Make one with `clipcls calibrate`.")
    if data[_KEY] != CALIBRATION_VERSION or isinstance(data[_KEY], bool):
        raise UsageError(
            f"{path}: a calibration of version {data[_KEY]!r}, and this clipcls reads {CALIBRATION_VERSION}. Make it "
            "anew with `clipcls calibrate`."
        )
    try:
        return _calibration(_Reader(data), str(path))
    except _DamagedError as exc:
        raise UsageError(f"{path}: a damaged calibration: {exc}. Make it anew with `clipcls calibrate`.") from exc


def _calibration(reader: "_Reader", name: str) -> Calibration:
    model, prompts, score = reader.part("model"), reader.part("prompts"), reader.part("score")
    origin, rows = reader.part("fitted_on"), reader.parts("labels")
    kind = SCORE_KINDS[score.choice("kind", tuple(SCORE_KINDS))]
    labels = tuple(row.text("name") for row in rows)
    if not labels or len(set(labels)) < len(labels):
        raise _DamagedError("labels: expected one name or more, each once")
    basis = Basis(
        model.text("name"),
        model.text("fingerprint"),
        model.text("precision"),
        model.text("decode"),
        kind.name,
        score.flag("multi_label"),
        labels,
        prompts.text("name"),
        prompts.text("sha256"),
        score.text_or_none("background"),
        score.text_or_none("taught") if score.has("taught") else None,
    )
    rule = None if reader.is_none("thresholds") else _rule(reader.part("thresholds"))
    calibration = Calibration(
        basis,
        CalibrationOrigin(origin.count("images"), origin.text("date"), origin.text("clipcls")),
        score.number("temperature", 1e-9) if kind.fits_scale else None,
        score.number("logit_scale", -100.0, 100.0) if kind.fits_scale else None,
        score.number("logit_bias") if kind.fits_bias else None,
        rule,
        () if rule is None else tuple(_label_threshold(row, kind.lowest) for row in rows),
        name,
    )
    if not kind.fits_scale and rule is None:
        raise _DamagedError(f"thresholds: a calibration of {kind.plural} has nothing else")
    return calibration


def _rule(part: "_Reader") -> Rule:
    if part.choice("rule", ("precision", "best F1")) == "best F1":
        return Rule(None, part.count("least_images"))
    return Rule(part.number("target", 0.0, 1.0), part.count("least_answers"))


def _label_threshold(row: "_Reader", lowest: float) -> LabelThreshold:
    threshold = None if row.is_none("threshold") else row.number("threshold", lowest, 1.0)
    counts = (row.count("images"), row.count("answers"), row.count("right"))
    return LabelThreshold(threshold, *counts, row.text("note") if row.has("note") else None)


class _DamagedError(Exception):
    """A value in a calibration's file is missing or wrong."""


class _Reader:
    """Reads named values, and raises `_DamagedError` for one that is missing or of the wrong type.

    Args:
        place: the prefix of names in messages.
    """

    def __init__(self, data: Mapping[Any, Any], place: str = "") -> None:
        self._data = data
        self._place = place

    def has(self, name: str) -> bool:
        return name in self._data

    def is_none(self, name: str) -> bool:
        return self._value(name) is None

    def part(self, name: str) -> "_Reader":
        value = self._value(name)
        if not isinstance(value, dict):
            raise self._wrong(name, "names and values", value)
        return _Reader(value, f"{self._place}{name}: ")

    def parts(self, name: str) -> "list[_Reader]":
        value = self._value(name)
        if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
            raise self._wrong(name, "a list of names and values", value)
        return [_Reader(entry, f"{self._place}{name}, entry {row}: ") for row, entry in enumerate(value, 1)]

    def text(self, name: str) -> str:
        value = self._value(name)
        if not isinstance(value, str) or not value:
            raise self._wrong(name, "text (in quotes, if it looks like a number or a date)", value)
        return value

    def text_or_none(self, name: str) -> str | None:
        return None if self.is_none(name) else str(self.text(name))

    def flag(self, name: str) -> bool:
        value = self._value(name)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def count(self, name: str) -> int:
        value = self._value(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise self._wrong(name, "a whole number from 0 on", value)
        return value

    def number(self, name: str, low: float = -1e9, high: float = 1e9) -> float:
        value = self._value(name)
        # NaN is in no interval
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise self._wrong(name, f"a number from {low:g} to {high:g}", value)
        return float(value)

    def choice(self, name: str, choices: Sequence[str]) -> Any:
        value = self._value(name)
        if value not in choices:
            raise self._wrong(name, f"one of {', '.join(choices)}", value)
        return value

    def _value(self, name: str) -> Any:
        if name not in self._data:
            raise _DamagedError(f"{self._place}{name} is missing")
        return self._data[name]

    def _wrong(self, name: str, expected: str, value: object) -> _DamagedError:
        shown = repr(value)
        return _DamagedError(
            f"{self._place}{name}: expected {expected}, got {shown if len(shown) <= 40 else shown[:37] + '...'}"
        )


_NORMAL = 1.959964  # standard deviations within which 95 % of a normal distribution lie


def share_interval(part: int, whole: int) -> tuple[float, float]:
    """Return the 95 % interval of a share; 0 to 1 where the whole is 0.

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953
    """
    if not whole:
        return 0.0, 1.0
    share, squared = part / whole, _NORMAL**2
    centre = (share + squared / (2 * whole)) / (1 + squared / whole)
    half = _NORMAL / (1 + squared / whole) * math.sqrt(share * (1 - share) / whole + squared / (4 * whole**2))
    # exactly 0 or 1 at the ends, in spite of rounding
    return (0.0 if part == 0 else centre - half), (1.0 if part == whole else centre + half)
