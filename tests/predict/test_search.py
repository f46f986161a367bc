"""Searches against brute force in float64, and whether their scores can be cut at."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from clipcls import Execution, ModelSpec, Session, Sources
from clipcls.embed.texts import embed_texts
from clipcls.errors import StoppedError, UsageError
from clipcls.outputs.vectors import read_vectors
from clipcls.outputs.vectors.write import VectorDestination
from clipcls.predict.error_limit import ErrorLimit
from clipcls.predict.pool import PicturePool, embed_pool, stored_pool
from clipcls.predict.query import Query, Term, parse_query
from clipcls.predict.search import search
from clipcls.predict.write_features import write_features
from clipcls.records import Hit
from conftest import EXAMPLES, ROOT, FakeEncoder

DIM = 48


class Random(FakeEncoder):
    """Features of texts are unit vectors that only depend on the text."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = DIM

    def encode_text(self, texts: Any) -> Any:
        seeds = [int.from_bytes(text.encode()[:8].ljust(8), "big") for text in texts]
        return np.stack([unit(np.random.default_rng(seed).standard_normal(DIM)) for seed in seeds]).astype(np.float32)


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@pytest.fixture
def session() -> Iterator[Session]:
    with Session(Random(), Execution()) as opened:
        yield opened


def random_pool(count: int, dtype: Any = np.float32, blocks: int = 1) -> PicturePool:
    """Unit vectors about a common mean, each fifth equal to an earlier one."""
    random = np.random.default_rng(5)
    features = unit(random.standard_normal((count, DIM)) + 2.0 * random.standard_normal(DIM)).astype(dtype)
    features[4::5] = features[: len(features[4::5])]
    return PicturePool([f"{i}.jpg" for i in range(count)], tuple(np.array_split(features, blocks)))


def found(text: str, pool: PicturePool, session: Session, **settings: Any) -> list[Hit]:
    ((_, hits),) = search([parse_query(text)], pool, session, **settings)
    return hits


def text_features(session: Session, *texts: str) -> Any:
    return np.stack([text.features for text in embed_texts([(t,) for t in texts], session)]).astype(np.float64)


def words_mean(session: Session) -> Any:
    from clipcls.labels.label_sets import load_label_set

    return text_features(session, *load_label_set("everyday").labels).mean(axis=0)


@pytest.mark.parametrize(("dtype", "blocks"), [(np.float32, 1), (np.float32, 3), (np.float16, 2)])
@pytest.mark.parametrize("top_k", [1, 10, 10_000])
def test_text_equals_brute_force(dtype: Any, blocks: int, top_k: int, session: Session) -> None:
    pool = random_pool(9_000, dtype, blocks)
    features = np.concatenate(pool.blocks).astype(np.float64)
    (query,) = text_features(session, "a red car")
    cosines = features @ query
    order = np.argsort(-cosines, kind="stable")[:top_k]
    hits = found("a red car", pool, session, top_k=top_k)
    assert [hit.path for hit in hits] == [pool.paths[i] for i in order]
    assert np.allclose([hit.similarity for hit in hits], cosines[order], atol=1e-12)


@pytest.mark.parametrize("text", ["horse + stripes", "2:horse - stripes", "- horse"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_joined_terms_equal_brute_force(text: str, dtype: Any, session: Session) -> None:
    pool = random_pool(5_000, dtype, blocks=2)
    features = np.concatenate(pool.blocks).astype(np.float64)
    centred = unit(features - features.mean(axis=0))
    terms = parse_query(text).terms
    directions = unit(text_features(session, *(term.value for term in terms)) - words_mean(session))
    weights = np.array([term.weight for term in terms]) / (centred @ directions.T).std(axis=0)
    scores = centred @ unit(weights @ directions)
    order = np.argsort(-scores, kind="stable")[:20]
    hits = found(text, pool, session, top_k=20)
    assert np.allclose([hit.score for hit in hits], scores[order], atol=1e-5)
    assert [hit.path for hit in hits] == [pool.paths[i] for i in order]


def test_several_queries_equal_each_by_itself(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipcls.predict.search._MOST_PRODUCTS", 2_500)  # two queries at once
    pool = random_pool(1_000)
    texts = ["a cat", "a dog", "a cat + a dog", "a fish", "a cat"]
    together = [hits for _, hits in search([parse_query(text) for text in texts], pool, session)]
    assert together == [found(text, pool, session) for text in texts]


def test_threshold_looks_beyond_the_best_by_cosine(session: Session) -> None:
    pool = random_pool(3_000)
    everything = found("a red car", pool, session, top_k=3_000)
    scores = np.array([hit.score for hit in everything], dtype=np.float32)
    threshold = float(np.sort(scores)[-4])
    expected = [hit for hit, score in zip(everything, scores, strict=True) if score >= np.float32(threshold)]
    assert expected != everything[:4]  # scores don't fall with cosines
    for top_k in (10, 2):
        hits = found("a red car", pool, session, top_k=top_k, threshold=threshold)
        assert [hit.path for hit in hits] == [hit.path for hit in expected[:top_k]]


def test_pictures_that_are_the_mean_are_no_hits(session: Session) -> None:
    same = PicturePool(["a.jpg", "b.jpg"], (np.tile(unit(np.ones(DIM)).astype(np.float32), (2, 1)),))
    assert [hit.score for hit in found("cat + dog", same, session)] == [0.0, 0.0]
    assert [hit.path for hit in found("cat", same, session)] == ["a.jpg", "b.jpg"]


def test_features_that_are_no_numbers_are_named(session: Session) -> None:
    pool = random_pool(10)
    pool.blocks[0][3, 5] = np.nan
    with pytest.raises(UsageError, match=r"features of 3\.jpg are no numbers"):
        found("cat", pool, session)


def test_an_empty_pool_is_an_error(session: Session) -> None:
    with pytest.raises(UsageError, match="no picture to search in"):
        found("cat", PicturePool([], ()), session)


# ------------------------------------------------------------------------------------------- pools


def test_pool_of_pictures_equals_that_of_its_file(colours: Path, tmp_path: Path) -> None:
    (colours / "broken.png").write_bytes(b"no picture")
    with Session(FakeEncoder(), Execution()) as session:
        pool, report = embed_pool(session, Sources([colours]))
        assert (report.done, report.failed) == (4, 1)
        write_features(session, Sources([colours]), VectorDestination(output=tmp_path / "out.npy"))
        stored = stored_pool(read_vectors(tmp_path / "out.npy"), "out.npy", session)
        assert list(stored.paths) == list(pool.paths) == [str(colours / f"{n}.png") for n in ("blue", "green", "red")]
        assert np.array_equal(np.concatenate(stored.blocks), np.concatenate(pool.blocks))
        assert found("red", pool, session)[0].path == str(colours / "red.png")
        picture = str(colours / "green.png")
        assert found(picture, pool, session)[0] == Hit(picture, picture, pytest.approx(1.0), pytest.approx(1.0))
        with pytest.raises(UsageError, match=r"picture .*broken\.png can't be read"):
            found(str(colours / "broken.png"), pool, session)
        with pytest.raises(StoppedError, match="first bad image"):
            embed_pool(session, Sources([colours]), ErrorLimit(count=0))


def test_a_large_pool_lies_in_a_file(colours: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Session(FakeEncoder(), Execution(batch_size=1)) as session:
        small, _ = embed_pool(session, Sources([colours]))
        monkeypatch.setattr("clipcls.predict.pool._IN_MEMORY_BYTES", 1)
        large, _ = embed_pool(session, Sources([colours]))
    assert [type(block) for block in large.blocks] == [np.ndarray, np.memmap]
    assert large.paths == small.paths
    assert np.array_equal(np.concatenate(large.blocks), np.concatenate(small.blocks))


def test_features_of_another_model_are_refused(colours: Path, tmp_path: Path) -> None:
    class Other(FakeEncoder):
        def fingerprint(self, sha256: object) -> bytes:
            return b"other"

    with Session(FakeEncoder(), Execution()) as session:
        write_features(session, Sources([colours]), VectorDestination(output=tmp_path / "out.npy"))
    with Session(Other(), Execution()) as session, pytest.raises(UsageError, match="was made by model fake"):
        stored_pool(read_vectors(tmp_path / "out.npy"), "out.npy", session)


def test_foreign_features_are_normalised(tmp_path: Path, session: Session) -> None:
    pool = random_pool(50)
    np.save(tmp_path / "other.npy", 7.0 * pool.blocks[0])
    (tmp_path / "other.paths.jsonl").write_text("".join(f'{{"path": "{p}", "error": null}}\n' for p in pool.paths))
    stored = stored_pool(read_vectors(tmp_path / "other.npy"), "other.npy", session)
    assert [hit.path for hit in found("cat", stored, session)] == [hit.path for hit in found("cat", pool, session)]
    with Session(FakeEncoder(), Execution()) as other, pytest.raises(UsageError, match="features of 48 numbers"):
        stored_pool(read_vectors(tmp_path / "other.npy"), "other.npy", other)


# ------------------------------------------------------------------------------------------- scores, on real pictures


def judged(model: str, folder: Path, classes: dict[str, str]) -> tuple[Any, Any, Any]:
    """Of all queries and pictures: whether it is a hit, its score, its cosine."""
    with Session(ModelSpec(model, device="cpu"), Execution()) as session:
        pool, _ = embed_pool(session, Sources([folder]))
        queries = [parse_query(name) for name in sorted(set(classes.values()))]
        rows = [
            (classes[Path(hit.path).name] == query.text, hit.score, hit.similarity)
            for query, hits in search(queries, pool, session, top_k=len(pool))
            for hit in hits
        ]
    hits, scores, cosines = (np.array(column) for column in zip(*rows, strict=True))
    return hits, scores, cosines


def test_scores_tell_hits_from_misses_better_than_cosines() -> None:
    photos = ["cat", "coffee", "hat", "pen", "rocket", "shirt", "shoes"]
    classes = {f"{name}.jpg": name for name in photos} | {"tulips.jpg": "flower"}
    hits, scores, cosines = judged("everyday", ROOT / "examples" / "photos", classes)
    assert average_precision_score(hits, scores) == 1.0 > average_precision_score(hits, cosines)
    with (ROOT / "examples" / "truth.csv").open() as file:
        drawn = {Path(row["path"]).name: row["label"] for row in csv.DictReader(file)}
    hits, scores, cosines = judged("pictogram", EXAMPLES, drawn)
    assert average_precision_score(hits, scores) > 0.98 > 0.95 > average_precision_score(hits, cosines)


def test_a_picture_does_not_drown_a_word() -> None:
    """Of the photographs, a picture of one and the word for another find these two first."""
    photos = ROOT / "examples" / "photos"
    with Session(ModelSpec("everyday", device="cpu"), Execution()) as session:
        pool, _ = embed_pool(session, Sources([photos]))
        pairs = [(a, b) for a in ("cat", "coffee", "rocket", "shirt") for b in ("pen", "shoes", "coffee") if a != b]
        terms = [(Term(str(photos / f"{picture}.jpg"), is_picture=True), Term(word)) for picture, word in pairs]
        texts = text_features(session, *(word for _, word in pairs))
        pictures = pool.rows(np.array([pool.paths.index(picture.value) for picture, _ in terms]))
        sums = pool.products(pictures + texts)
        found_two = search([Query("", both) for both in terms], pool, session, top_k=2)
        plain = searched = 0
        for pair, row, (_, hits) in zip(pairs, sums, found_two, strict=True):
            wanted = {f"{name}.jpg" for name in pair}
            searched += {Path(hit.path).name for hit in hits} == wanted
            plain += {Path(pool.paths[i]).name for i in np.argsort(-row)[:2]} == wanted
    assert searched == len(pairs) > plain
