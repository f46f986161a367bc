"""Fit a calibration to labelled pictures."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np

from clipcls.embed.prepare import quantise_ahead
from clipcls.embed.session import Session
from clipcls.embed.watch import Watch
from clipcls.errors import UsageError
from clipcls.evaluate.before_after import Correction, Measures, Scored, fit_scores, fit_thresholds, hold_out, measure
from clipcls.evaluate.evaluate import EvalPlan, classifier_of, right_flags, right_labels, without_taught
from clipcls.evaluate.match_labels import repeated_paths
from clipcls.evaluate.pictures import Pictures
from clipcls.evaluate.results import Classes, match_classes
from clipcls.inputs.labelled.examples import Truth
from clipcls.predict.calibration import Basis, Calibration, CalibrationOrigin, Rule
from clipcls.predict.ranking import Flags
from clipcls.predict.scores import kind_names

#: With fewer images, nothing is fitted.
LEAST_IMAGES = 10

Failures = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """What is fitted, and on which images.

    Attributes:
        rule: how thresholds are chosen; None for no thresholds.
        holdout: the share of the images that is held out to measure on; None to measure on the fitted ones alone.
        seed: of the random choice of the images held out.
    """

    rule: Rule | None = None
    holdout: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            UsageError: `holdout` doesn't lie between 0 and 1.
        """
        if self.holdout is not None and not 0 < self.holdout < 1:
            raise UsageError("--holdout is a share of the images: it must lie between 0 and 1, such as 0.5.")


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """A calibration, and how good scores are with it.

    Attributes:
        fitted: measured on the images that it was fitted on, which looks better than new images would.
        held_out: measured on the images held out; None where none were.
        failed: path and error of each image that couldn't be read.
        outside: the number of images whose class isn't among the labels: any answer to them is wrong.
        is_fitted: False where no answer was wrong, so that the model's temperature was kept.
        problems: messages about the data.
    """

    calibration: Calibration
    fitted: Measures
    held_out: Measures | None
    failed: Failures
    outside: int
    is_fitted: bool
    problems: tuple[str, ...] = ()


def calibrate(
    truth: Truth, plan: EvalPlan, settings: CalibrationSettings, watch: Watch | None = None
) -> CalibrationReport:
    """Fit the scores of one model with one prompt set to labelled pictures.

    Args:
        plan: must hold one model and one prompt set.

    Raises:
        ModelError: the model can't be loaded.
        UsageError: labels, prompts or settings can't be used, or the pictures are too few or don't fit the labels.
    """
    if plan.scoring.multi_label:
        truth = replace(truth, multi_label=True)
    _refuse(truth, plan, settings)
    truth = without_taught(truth, plan.prompts)
    classes = match_classes(truth, plan.labels)
    watch = watch or Watch()
    pictures = Pictures([example.image for example in truth.examples], watch)
    with Session(plan.models[0], plan.execution) as session:
        quantise_ahead(session, lambda: [example.image for example in truth.examples])
        classifier = classifier_of(plan, False, session, plan.prompts[0])
        side, basis = classifier.embed_labels(watch.labels), classifier.basis()
        watch.begin(lambda: len(truth.examples), 0)
        features = np.concatenate([features for _, features in pictures.embed(session)])
    data = Scored.make(features, _flags(truth, classes)[pictures.good()], side, plan.scoring)
    fit_on, rest = data, None
    if settings.holdout is not None:
        chosen = hold_out(data, settings.holdout, settings.seed)
        fit_on, rest = data.select(~chosen), data.select(chosen)
    _require_images(fit_on, rest)
    correction = fit_scores(fit_on, side)
    calibration = _calibration(basis, correction, fit_on.count)
    if settings.rule is not None:
        thresholds = fit_thresholds(fit_on, calibration.apply(side), settings.rule)
        calibration = replace(calibration, rule=settings.rule, thresholds=thresholds)
    after = calibration.apply(side)
    return CalibrationReport(
        calibration,
        measure(fit_on, side, after),
        None if rest is None else measure(rest, side, after),
        pictures.failures(),
        int(data.outside.sum()),
        correction.is_fitted or not plan.scoring.score_kind.fits_scale,
        tuple(repeated_paths(truth.examples)) + truth.problems,
    )


def _calibration(basis: Basis, correction: Correction, images: int) -> Calibration:
    origin = CalibrationOrigin(images, datetime.now(UTC).date().isoformat(), version("clipcls"))
    return Calibration(basis, origin, correction.temperature, correction.logit_scale, correction.logit_bias)


def _refuse(truth: Truth, plan: EvalPlan, settings: CalibrationSettings) -> None:
    """Raise UsageError for what can't be calibrated, before a model is opened."""
    kind, multi_label = plan.scoring.score_kind, plan.scoring.multi_label
    if len(plan.models) != 1 or len(plan.prompts) != 1:
        raise UsageError("A calibration is of one model with one prompt set.")
    if truth.multi_label and not multi_label:
        raise UsageError("The data give several labels an image, or none: use --multi-label.")
    of_labels = kind_names(lambda other: other.fits_scale and not other.adds_up)
    if multi_label and not kind.fits_scale:
        raise UsageError(
            f"--multi-label with --score {kind.name} can't be calibrated; with --score {of_labels} it can."
        )
    if not kind.fits_scale and settings.rule is None:
        raise UsageError(
            f"{kind.plural.capitalize()} have no temperature: give --target-precision or --best-f1, for thresholds."
        )
    if kind.adds_up and len(plan.labels) == 1:
        raise UsageError(
            f"With one label its {kind.name} score is always 1: use --score {of_labels}, or give more labels."
        )


# ---------------------------------------------------------------------------------------------------------
# The pictures


def _flags(truth: Truth, classes: Classes) -> Flags:
    if truth.multi_label:
        return right_flags(truth, classes)
    flags: Flags = right_labels(truth, classes)[:, None] == np.arange(classes.n_labels)
    return flags


def _require_images(fit_on: Scored, rest: Scored | None) -> None:
    usable = int((~fit_on.outside).sum())
    if usable < LEAST_IMAGES:
        raise UsageError(
            f"{usable} images{'' if rest is None else ' besides those held out'} are too few to fit anything: give "
            f"{LEAST_IMAGES} or more with labels that are asked for."
        )
    if rest is not None and not rest.count:
        raise UsageError("--holdout leaves no image to measure on: give a larger share, or more images.")
