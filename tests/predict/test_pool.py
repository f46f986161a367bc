"""Products with features as files hold them."""

import numpy as np
import pytest

from clipcls.errors import UsageError
from clipcls.predict.pool import PicturePool


def test_float16_means_what_numpy_says() -> None:
    features = np.random.default_rng(0).standard_normal((1300, 24)).astype(np.float16)
    features[0, :4] = 0.0, -0.0, 6e-8, -65504  # a subnormal number and the lowest among them
    wide = features.astype(np.float32)
    vectors = np.random.default_rng(1).standard_normal((3, 24))
    pool = PicturePool([str(number) for number in range(len(features))], (features[:700], features[700:]))
    expected = np.concatenate([vectors.astype(np.float32) @ part.T for part in (wide[:700], wide[700:])], axis=1)
    np.testing.assert_allclose(pool.products(vectors), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(pool.rows(np.array([0, 699, 700])), wide[[0, 699, 700]])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_float16_that_is_no_number_is_named(value: float) -> None:
    features = np.eye(8, dtype=np.float16)
    features[5, 5] = value
    with pytest.raises(UsageError, match=r"features of f are no numbers"):
        PicturePool("abcdefgh", (features,)).products(np.ones((1, 8)))
