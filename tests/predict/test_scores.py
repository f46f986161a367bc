"""A kind of score is one class: what asks for its kind, and for what can be done with it, asks the class."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.errors import UsageError
from clipcls.evaluate.calibrate import CalibrationSettings, calibrate
from clipcls.evaluate.evaluate import EvalPlan, evaluate
from clipcls.evaluate.results import ACCURACY_AT_1, BRIER_SCORE, CALIBRATION_ERROR
from clipcls.inputs.labelled.read import read_truth
from clipcls.labels.label_files import make_label
from clipcls.labels.prompts import load_prompt_set
from clipcls.predict.classifier import Classifier
from clipcls.predict.ranking import Scoring
from clipcls.predict.scores import SCORE_KINDS, ScoreKind
from conftest import FakeEncoder


class Percent(ScoreKind):
    name = "percent"
    plural = "percentages"
    is_probability = False

    def scores(
        self, contrasts: NDArray[np.float32], logit_scale: float, logit_bias: float | None
    ) -> NDArray[np.float32]:
        return (1 + contrasts) / 2


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(SCORE_KINDS, "percent", Percent())
    for name, colour in FakeEncoder.COLOURS.items():
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (8, 8), colour).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_toy_kind_predicts(pictures: Path) -> None:
    session = Session(FakeEncoder(), Execution())
    classifier = Classifier(session, list(FakeEncoder.COLOURS), "simple", Scoring("percent"))
    for prediction in classifier.predict(pictures):
        assert prediction.label == Path(prediction.path).parent.name
        assert prediction.similarity is not None and prediction.score == pytest.approx((1 + prediction.similarity) / 2)


def test_toy_kind_is_evaluated_and_calibrated_as_far_as_it_can_be(pictures: Path) -> None:
    truth, prompts = read_truth([str(pictures)]), (load_prompt_set("simple"),)
    labels = tuple(map(make_label, FakeEncoder.COLOURS))
    plan = EvalPlan(labels, (FakeEncoder(),), prompts, Scoring("percent"), execution=Execution())
    (result,) = evaluate(truth, plan).results
    assert result.figures[ACCURACY_AT_1].value == 1
    assert result.omitted == dict.fromkeys((CALIBRATION_ERROR, BRIER_SCORE), "percentages are no probabilities")
    with pytest.raises(UsageError, match=r"^Percentages have no temperature: give --target-precision"):
        calibrate(truth, plan, CalibrationSettings())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "ratio"}, "Unknown score 'ratio'. Use one of: softmax, sigmoid, cosine, percent."),
        ({"threshold": -0.5}, "--threshold must lie between 0 and 1 for --score percent."),
        ({"multi_label": True}, "needs a --threshold: percentages have no natural one"),
        ({"kind": "softmax", "multi_label": True}, "use --score sigmoid or cosine or percent, not softmax"),
    ],
)
@pytest.mark.usefixtures("pictures")
def test_toy_kind_is_named_in_messages(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Scoring(**({"kind": "percent"} | settings))
    assert message in str(caught.value)


@pytest.mark.parametrize("name", SCORE_KINDS)
def test_kinds_are_consistent(name: str) -> None:
    kind = SCORE_KINDS[name]
    assert kind.name == name and Scoring(name).score_kind is kind
    assert not kind.adds_up or kind.is_probability
    assert not kind.fits_bias or kind.fits_scale
    assert kind.threshold is None or kind.lowest <= kind.threshold <= 1
