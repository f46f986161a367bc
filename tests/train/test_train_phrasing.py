"""Captions in templates that fit their script."""

import random

from clipcls.inputs.labelled.examples import Example
from clipcls.records import ImageRef
from clipcls.train.data.captions import Phrasing


def test_phrasing_keeps_scripts_apart() -> None:
    phrasing = Phrasing(["{}", "a {}", "一张{}"])
    assert set(phrasing.every(["cat", "猫"])) == {"cat", "a cat", "猫", "一张猫"}
    drawn = {phrasing.draw(Example(ImageRef("x"), captions=("猫",)), random.Random(n))[1] for n in range(20)}
    assert drawn == {"猫", "一张猫"}
