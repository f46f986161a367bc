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
def test_the_least_sure_come_first_and_the_sure_ones_last(count: int) -> None:
    pool = pool_of((1, 0, 0.1), (1, 0.98, 0), (0.1, 1, 0), (0.6, 0.6, 0.5), (0, 1, 0))
    with Session(FakeEncoder(), Execution()) as session:
        found = suggest(Classifier(session, ["red", "green"]), pool, count)
    assert len(found) == min(count, 5) and found[0].path == "3.png"
    assert all(len(prediction.top) == 2 for prediction in found)
    if count > 1:
        # the candidates are all here: the farthest from the first
        assert found[1].path in ("0.png", "4.png")


def test_pictures_that_are_alike_are_not_all_suggested() -> None:
    alike = [(0.6, 0.6, 0.5)] * 30
    pool = pool_of(*alike, (0.52, 0.5, 0.9), (0.8, 0.81, 0.1))
    with Session(FakeEncoder(), Execution()) as session:
        found = suggest(Classifier(session, ["red", "green"]), pool, 4)
    assert {"30.png", "31.png"} < {prediction.path for prediction in found}
    assert len({prediction.path for prediction in found}) == 4
