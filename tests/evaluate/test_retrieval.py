"""How well pictures find their captions and captions their pictures."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clipcls.embed.execution import Execution
from clipcls.errors import UsageError
from clipcls.evaluate import retrieval
from clipcls.evaluate.retrieval import (
    MEAN_RECALL_AT_1,
    Pairs,
    RetrievalOutcome,
    RetrievalPlan,
    measure_retrieval,
    ranks,
    retrieval_record,
)
from clipcls.inputs.labelled.examples import Example, Truth
from clipcls.labels.prompts import templates_set
from clipcls.records import ImageRef
from conftest import FakeEncoder, save_pictures

Array = NDArray[Any]


def unit(random: np.random.Generator, *shape: int) -> Array:
    features = random.normal(size=shape).astype(np.float32)
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def matches_of(right: Sequence[Sequence[int]]) -> Array:
    return np.array([(query, index) for query, indices in enumerate(right) for index in indices])


def pairs_of(folder: Path, captions: dict[str, Sequence[str]]) -> Pairs:
    return Pairs.of(Truth(tuple(Example(ImageRef(str(folder / name)), (), tuple(t)) for name, t in captions.items())))


def measured(pairs: Pairs, *encoders: Any, **given: Any) -> RetrievalOutcome:
    models = tuple((lambda encoder=encoder: encoder) for encoder in encoders or (FakeEncoder(),))
    return measure_retrieval(pairs, RetrievalPlan(models, execution=Execution(), **given))


def values(outcome: RetrievalOutcome, result: int = 0) -> dict[str, float]:
    return {name: estimate.value for name, estimate in outcome.results[result].figures.items()}


# --------------------------------------------------------------------------------------------- ranks


@pytest.fixture
def theirs() -> Callable[[Array, Array, int], float]:
    """CLIP_benchmark's recall at K of rows of scores, where the flags tell what is right."""
    module = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval")
    import torch

    def recall(scores: Array, right: Array, k: int) -> float:
        found = module.batchify(module.recall_at_k, torch.from_numpy(scores), torch.from_numpy(right), 64, "cpu", k=k)
        return float((found > 0).float().mean())

    return recall


@pytest.mark.parametrize("at_once", [1, 2**24])
@pytest.mark.parametrize("seed", range(3))
def test_ranks_give_the_recalls_of_clip_benchmark(
    monkeypatch: pytest.MonkeyPatch, theirs: Any, at_once: int, seed: int
) -> None:
    monkeypatch.setattr(retrieval, "COSINES_AT_ONCE", at_once)
    random = np.random.default_rng(seed)
    owners = np.repeat(np.arange(150), random.integers(1, 7, 150))
    images, texts = unit(random, 150, 12), unit(random, len(owners), 12) + 0.2
    texts[3] = texts[20]
    matches = np.stack([np.arange(len(owners)), owners], axis=1)
    right = owners[:, None] == np.arange(150)
    scores = texts @ images.T
    of_texts, of_images = ranks(texts, images, matches), ranks(images, texts, matches[:, ::-1])
    for k in (1, 5, 10, 100):
        assert (of_texts < k).mean() == pytest.approx(theirs(scores, right, k), abs=1e-6)
        assert (of_images < k).mean() == pytest.approx(theirs(scores.T.copy(), right.T.copy(), k), abs=1e-6)
    assert 0 < (of_texts < 1).mean() < (of_images < 10).mean() < 1


def test_equally_near_candidates_count_in_their_order_as_for_clip_benchmark(theirs: Any) -> None:
    random = np.random.default_rng(0)
    # a few numbers whose products are exact, so that many candidates are equally near
    queries, candidates = (random.integers(0, 2, (size, 6)).astype(np.float32) for size in (80, 900))
    right = random.integers(0, 900, 80)
    found = ranks(queries, candidates, np.stack([np.arange(80), right], axis=1))
    scores = queries @ candidates.T
    order = np.argsort(-scores, axis=1, kind="stable")
    assert (found == (order == right[:, None]).argmax(axis=1)).all()
    # torch takes the first of equal ones as long as K is small beside their number
    for k in (1, 5, 10):
        assert (found < k).mean() == pytest.approx(theirs(scores, right[:, None] == np.arange(900), k), abs=1e-6)


@pytest.mark.parametrize("count", [2, 37, 1000])
def test_a_collapsed_model_finds_no_more_than_chance_does(count: int) -> None:
    features = np.repeat(unit(np.random.default_rng(0), 1, 512), count, axis=0)
    own = np.arange(count)
    assert (ranks(features, features, np.stack([own, own], axis=1)) == own).all()


def test_ranks_do_not_count_what_is_right_too() -> None:
    features = unit(np.random.default_rng(0), 3, 16)
    assert ranks(features[:1], features[[1, 0, 0, 0, 2]], matches_of([[1, 2, 3]])).tolist() == [0]
    # the nearest of the right ones counts, in whatever order they are given
    assert ranks(features[:2], features[[2, 1, 0]], matches_of([[0, 2], [0, 1]])[::-1]).tolist() == [0, 0]


# --------------------------------------------------------------------------------------------- the run


def test_rows_of_one_picture_are_one_picture(colours: Path) -> None:
    red, blue = ImageRef(str(colours / "red.png")), ImageRef(str(colours / "blue.png"))
    rows = (Example(red, (), ("a", "b")), Example(blue, (), ("c",)), Example(red, (), ("d",)))
    pairs = Pairs.of(Truth(rows))
    assert (pairs.images, pairs.captions, pairs.owners.tolist()) == ((red, blue), ("a", "b", "d", "c"), [0, 0, 0, 1])


def test_a_right_model_finds_everything(colours: Path) -> None:
    pairs = pairs_of(colours, {f"{name}.png": [f"so {name}", name] for name in FakeEncoder.COLOURS})
    outcome = measured(pairs)
    assert (outcome.measured_images, outcome.measured_captions) == (3, 6)
    assert all(value == 1 for value in values(outcome).values())
    assert next(iter(values(outcome))) == MEAN_RECALL_AT_1
    # of three pictures five are always all
    left_out = {f"text to image recall@{k}" for k in (5, 10)} | {"image to text recall@10"}
    assert outcome.omitted.keys() == left_out and not left_out & values(outcome).keys()


def test_a_caption_that_fits_another_picture_better_lowers_both_recalls(colours: Path) -> None:
    captions = {"red.png": ["red", "blue"], "green.png": ["green"], "blue.png": ["red"]}
    figures = values(measured(pairs_of(colours, captions)))
    # red finds red, blue finds blue's picture, green green, and blue's caption finds red's picture
    assert figures["text to image recall@1"] == 2 / 4
    assert figures["image to text recall@1"] == 2 / 3
    assert figures[MEAN_RECALL_AT_1] == pytest.approx((2 / 4 + 2 / 3) / 2)
    assert figures["text to image median rank"] == 1


def test_intervals_resample_pictures_with_all_of_their_captions(tmp_path: Path) -> None:
    class Noise(FakeEncoder):
        """A model that knows nothing, but always the same of a text and of a picture."""

        def encode_text(self, texts: Sequence[str]) -> Array:
            return unit(np.random.default_rng([len(text) for text in texts]), len(texts), 3)

    paths = save_pictures(tmp_path, 30)
    single = {path.name: [f"{path.name} {'x' * 5}"] for path in paths}
    five_times = {name: captions * 5 for name, captions in single.items()}
    one, five = (measured(pairs_of(tmp_path, captions), Noise()).results[0] for captions in (single, five_times))
    name = "text to image recall@5"
    # five equal captions tell no more than one does
    assert one.figures[name] == five.figures[name]
    assert one.figures[name].high > one.figures[name].low


def test_models_and_ways_to_present_captions_are_compared_on_the_same_pictures(colours: Path) -> None:
    class Wrong(FakeEncoder):
        COLOURS: ClassVar = {"red": (0, 255, 0), "green": (0, 0, 255), "blue": (255, 0, 0)}

        def fingerprint(self, sha256: object) -> bytes:
            return b"wrong"

    pairs = pairs_of(colours, {f"{name}.png": [name] for name in FakeEncoder.COLOURS})
    sets = (None, templates_set(["a {} one", "{}"]))
    right, wrong = FakeEncoder(), Wrong()
    outcome = measured(pairs, wrong, right, prompts=sets)
    assert [result.prompts for result in outcome.results] == [None, "templates"] * 2
    assert outcome.best == 2
    assert [result.difference.value for result in outcome.results] == [-1, -1, 0, 0]
    assert sorted(right.texts) == sorted(
        [*FakeEncoder.COLOURS, *(f"a {c} one" for c in FakeEncoder.COLOURS), *FakeEncoder.COLOURS]
    )
    assert sum(right.batches) == 3


def test_pictures_that_cannot_be_read_are_left_out_with_their_captions(colours: Path) -> None:
    (colours / "bad.png").write_bytes(b"no picture")
    captions = {"red.png": ["red"], "bad.png": ["green", "blue"], "green.png": ["green"], "gone.png": ["x"]}
    outcome = measured(pairs_of(colours, captions))
    assert (outcome.images, outcome.captions, outcome.measured_images, outcome.measured_captions) == (4, 5, 2, 2)
    assert [Path(path).name for path, _ in outcome.failed] == ["bad.png", "gone.png"]
    assert values(outcome)[MEAN_RECALL_AT_1] == 1
    assert not outcome.shared
    with pytest.raises(UsageError, match="Only one picture can be read"):
        measured(pairs_of(colours, {"red.png": ["red"], "bad.png": ["green"]}))


def test_captions_of_several_pictures_are_named(colours: Path) -> None:
    captions = {"red.png": ["a  Colour", "red", "red"], "green.png": ["a colour"], "blue.png": ["blue"]}
    assert measured(pairs_of(colours, captions)).shared == {"a colour": 2}


def test_captions_that_mean_nothing_to_a_model_or_are_cut_are_said(
    colours: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = FakeEncoder()
    encoder.words = str(tmp_path)
    (tmp_path / "words.txt").write_text("red\ngreen\nlong\n")
    pairs = pairs_of(colours, {"red.png": ["red", "zzz"], "green.png": ["green", "long " * 9], "blue.png": ["blue"]})
    outcome = measured(pairs, encoder)
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        "model fake was never trained on a word of 2 of the 5 captions, such as 'zzz'",
        "the model sees only the first 8 tokens of the prompt 'long long long long long long long long long '",
    ]
    assert json.dumps(retrieval_record(outcome), allow_nan=False)


# --------------------------------------------------------------------------------------------- groups


def test_groups_of_what_captions_find_stand_beside_chance(tmp_path: Path) -> None:
    """Every caption finds its own colour first, of which all pictures are in one group."""
    examples = []
    for number in range(24):
        name, colour = list(FakeEncoder.COLOURS.items())[number % 2]
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (8, 8), colour).save(path)
        examples.append(Example(ImageRef(str(path)), (), (name,), (name, "all")))
    (tmp_path / "bad.png").touch()
    examples.append(Example(ImageRef(str(tmp_path / "bad.png")), (), ("red",), ("bad", "bad")))
    again = replace(examples[0], groups=("other", "all"))
    pairs = Pairs.of(Truth((*examples, again), group_columns=("colour", "every")))
    assert pairs.problems == (f"{tmp_path / '0.png'}: of another group in a later row, where the first counts",)
    outcome = measured(pairs)
    figures = values(outcome)
    assert figures["MaxSkew@10 by colour"] == pytest.approx(np.log(2))
    assert figures["MaxSkew@10 by every"] == figures["NDKL by every"] == 0
    assert "MaxSkew@100 by colour" not in figures
    assert figures["NDKL by colour"] > outcome.by_chance["NDKL by colour"] > 0
    record = retrieval_record(outcome)
    assert record["figures_by_chance"].keys() == {name for name in figures if " by " in name}
    plain = measured(Pairs.of(Truth(tuple(examples))))
    assert "figures_by_chance" not in retrieval_record(plain)
    assert values(plain).keys() == {name for name in figures if " by " not in name}
