"""Measure answers to multiple-choice questions, each with choices of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.embed.texts import embed_texts
from clipcls.embed.watch import Watch
from clipcls.errors import UsageError
from clipcls.evaluate import metrics
from clipcls.evaluate.metrics import Estimate
from clipcls.evaluate.pictures import Pictures
from clipcls.inputs.labelled.choices import ChoiceExample
from clipcls.labels.prompts import load_prompt_set, render
from clipcls.labels.questions import Question, make_question, weaknesses
from clipcls.predict.ranking import similarities
from clipcls.records import ModelSpec, PromptSet


@dataclass(frozen=True, slots=True)
class ChoiceResult:
    """How many questions a model answered right.

    Attributes:
        chance: the accuracy of choosing at random.
        measured: the number of questions in the figures.
        failed: path and error of each picture that couldn't be read.
        wrong: the names of questions that were answered wrong.
        weak: how many questions ask for what models of this kind tell badly, by what that is.
        problems: messages about the data.
    """

    accuracy: Estimate
    chance: float
    measured: int
    failed: tuple[tuple[str, str], ...]
    wrong: tuple[str, ...]
    weak: dict[str, int]
    problems: tuple[str, ...]


def evaluate_choices(
    examples: Sequence[ChoiceExample],
    model: ModelSpec,
    execution: Execution,
    prompts: PromptSet | None = None,
    problems: Sequence[str] = (),
    watch: Watch | None = None,
) -> ChoiceResult:
    """Answer each question by the choice whose statement is the most similar to its picture.

    Args:
        prompts: what choices are filled into; None for the statement that each question becomes, else `default`.

    Raises:
        ModelError: the model can't be loaded.
        UsageError: no picture can be read, or two choices of a question mean the same.
    """
    watch = watch or Watch()
    asked = [_question(example) for example in examples]
    default = load_prompt_set("default")
    statements = [
        [render(label, prompts or question.prompts or default) for label in question.labels] for question in asked
    ]
    distinct = list(dict.fromkeys(text for own in statements for text in own))
    pictures = Pictures([example.image for example in examples], watch)
    with Session(model, execution) as session:
        embedded = embed_texts(distinct, session, strict=execution.strict_prompts, report=watch.labels)
        features = dict(zip(distinct, (text.features for text in embedded), strict=True))
        watch.begin(lambda: len(examples), 0)
        right = np.zeros(len(examples), dtype=np.bool_)
        for rows, image_features in pictures.embed(session):
            for row, feature in zip(rows.tolist(), image_features, strict=True):
                texts = np.stack([features[text] for text in statements[row]])
                right[row] = similarities(feature[None], texts)[0].argmax() == examples[row].answer
    good = pictures.good()
    if not good.any():
        raise UsageError("No picture could be read.")
    figures = metrics.bootstrap({"accuracy": metrics.mean(right[good])}, int(good.sum()))
    weak: dict[str, int] = {}
    for question in asked:
        for what, _ in weaknesses(question):
            weak[what] = weak.get(what, 0) + 1
    return ChoiceResult(
        figures["accuracy"],
        float(np.mean([1 / len(examples[row].choices) for row in np.flatnonzero(good).tolist()])),
        int(good.sum()),
        pictures.failures(),
        tuple(examples[row].name for row in np.flatnonzero(good & ~right).tolist()),
        weak,
        tuple(problems),
    )


def _question(example: ChoiceExample) -> Question:
    try:
        return make_question(example.question, example.choices)
    except UsageError as exc:
        raise UsageError(f"{example.name}: {exc}") from exc
