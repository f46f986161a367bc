"""Which pictures are suggested for labelling."""

import numpy as np
import pytest

from clipcls import Classifier, Execution, PicturePool, Session
from clipcls.predict.suggest import suggest
from conftest import FakeEncoder


def pool_of(*colours: tuple[float, float, float]) -> PicturePool:
    features = np.array(colours, dtype=np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return PicturePool([f"{row}.png" for row in range(len(colours))], (features,))


@pytest.mark.parametrize("count", [1, 2, 10])
def test_each_picture_is_suggested_once(count: int) -> None:
    pool = pool_of((1, 0, 0.1), (1, 0.98, 0), (0.1, 1, 0), (0.6, 0.6, 0.5), (0, 1, 0))
    with Session(FakeEncoder(), Execution()) as session:
        found = suggest(Classifier(session, ["red", "green"]), pool, count)
    assert len({prediction.path for prediction in found}) == len(found) == min(count, 5)
    assert all(len(prediction.top) == 2 for prediction in found)


def test_unsure_pictures_weigh_more_than_sure_ones() -> None:
    pool = pool_of((1, 0, 0), (1, 0.01, 0), (1, 0, 0.01), (1, 0.99, 0), (1, 1, 0))
    with Session(FakeEncoder(), Execution()) as session:
        (found,) = suggest(Classifier(session, ["red", "green"]), pool, 1)
    assert found.path in ("3.png", "4.png")


def test_the_picture_that_stands_for_most_comes_first() -> None:
    pool = pool_of((1, 0, 0), *[(0.02 * i, 0.02 * i, 1) for i in range(9)], (0, 1, 0))
    with Session(FakeEncoder(), Execution()) as session:
        found = suggest(Classifier(session, ["red", "green"]), pool, 3)
    assert [prediction.path in ("0.png", "10.png") for prediction in found] == [False, True, True]


def test_of_many_pictures_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.predict.suggest._MOST_CANDIDATES", 4)
    pool = pool_of(*[(1, 0.1 * i, 0) for i in range(12)])
    with Session(FakeEncoder(), Execution()) as session:
        classifier = Classifier(session, ["red", "green"])
        assert [len(suggest(classifier, pool, count)) for count in (3, 6, 20)] == [3, 6, 12]


def test_no_pictures_give_no_suggestions() -> None:
    with Session(FakeEncoder(), Execution()) as session:
        assert suggest(Classifier(session, ["red", "green"]), PicturePool([], ()), 3) == []


def test_pictures_that_are_alike_are_not_all_suggested() -> None:
    alike = [(0.6, 0.6, 0.5)] * 30
    pool = pool_of(*alike, (0.52, 0.5, 0.9), (0.8, 0.81, 0.1))
    with Session(FakeEncoder(), Execution()) as session:
        found = suggest(Classifier(session, ["red", "green"]), pool, 4)
    assert {"30.png", "31.png"} < {prediction.path for prediction in found}
    assert len({prediction.path for prediction in found}) == 4
