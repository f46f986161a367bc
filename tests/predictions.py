"""Predictions of all sorts, and runs that write them."""

import os
from collections.abc import Sequence
from pathlib import Path

from clipcls.outputs.destination import Destination
from clipcls.outputs.resume import open_output
from clipcls.records import ImageRef, Prediction, ScoredLabel

SETTINGS = {"--model": "ab12", "--labels": [["cat", "cat"], ["dog", "dog"]], "--top-k": None, "--threshold": 0.5}
NAMES = (
    *("plain.jpg", "a b.png", "tab\there", "line\nbreak", "back\\slash", "back\\tslash", 'quo"te,', "é 🐈", "-dash"),
    *("carriage\rreturn", os.fsdecode(b"invalid-\xff.jpg"), "shard.tar/x.jpg", "https://example.org/a?b=c"),
)


def answer(path: str, *scores: float) -> Prediction:
    """A prediction that lists a label for each score."""
    labels = ("cat", "hot\tdog", 'a, "b"', "Hund\nKatze")
    top = tuple(ScoredLabel(label, score, score / 4) for label, score in zip(labels, scores, strict=False))
    return Prediction(path, top[0].label, top[0].score, top[0].similarity, top)


def unknown(path: str) -> Prediction:
    """A prediction below the threshold."""
    return Prediction(path, None, 0.25, 0.0625, (ScoredLabel("cat", 0.25, 0.0625),))


def failed(path: str) -> Prediction:
    """A picture that can't be read."""
    return Prediction(path, None, None, None, error="truncated JPEG: the file ends before the picture does")


def all_sorts(lines: int = 1) -> list[Prediction]:
    """Predictions with up to `lines` answers, among them the same path twice in a row."""
    scores = (0.5, 0.25, 0.125)[:lines]
    made = [answer(name, *scores) for name in NAMES]
    made += [failed("bad\n.jpg"), unknown("what.jpg"), unknown("what.jpg"), answer("twice", *scores)]
    return [*made, answer("twice", *scores), failed("gone.jpg"), answer("last", *scores)]


def write(destination: Destination, predictions: Sequence[Prediction], settings: object = None) -> None:
    """What a run does: predictions for the images that aren't done, in their order."""
    chosen = dict(SETTINGS if settings is None else settings)  # type: ignore[call-overload]
    answers = {prediction.path: prediction for prediction in predictions}
    images = [ImageRef(prediction.path) for prediction in predictions]
    with open_output(destination, ("cat", "dog"), lambda: chosen) as output:
        for image in output.done.remaining(images):
            output.write(answers[image.path])


def destination(path: Path, **options: object) -> Destination:
    """A file as the destination."""
    return Destination(str(path), **options)  # type: ignore[arg-type]
