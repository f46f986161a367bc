"""How well searches find pictures whose classes are known, and where their scores can be cut.

    python tests/benchmarks/search_quality.py FOLDER… [--model everyday]

Each FOLDER holds class folders of pictures. Three things are measured in each:

- words: each class's name is a query. Over all queries and pictures together, how well the score tells hits from
  misses, beside the cosine: average precision, the best F1, and the F1 at a threshold of 0.5.
- pictures: up to 300 of the pictures are queries, and those of the same class hits, beside the cosine.
- a picture and a word: up to 500 pairs of a picture and the name of another class. The share of queries whose ten best
  show both classes, at least one and at least three of each; beside it the plain sum of the two features.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score

from clipcls import ModelSpec, Session, Sources
from clipcls.predict.pool import PicturePool, embed_pool
from clipcls.predict.query import Query, Term, parse_query
from clipcls.predict.search import search

PICTURE_QUERIES, PAIRS, TOP = 300, 500, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--model", default="everyday")
    arguments = parser.parse_args()
    with Session(ModelSpec(arguments.model)) as session:
        for folder in arguments.folders:
            pool, _ = embed_pool(session, Sources([folder]))
            classes = np.array([Path(path).parent.name for path in pool.paths])
            print(f"{folder}: {len(pool):,} pictures, {len(set(classes))} classes")
            measure_words(pool, classes, session)
            measure_pictures(pool, classes, session)
            measure_sums(pool, classes, session)


def measure_words(pool: PicturePool, classes: np.ndarray, session: Session) -> None:
    names = sorted(set(classes))
    report("words", *judged([parse_query(name) for name in names], names, pool, classes, session), at=0.5)


def measure_pictures(pool: PicturePool, classes: np.ndarray, session: Session) -> None:
    chosen = np.random.default_rng(0).permutation(len(pool))[:PICTURE_QUERIES]
    queries = [parse_query(pool.paths[i]) for i in chosen]
    report("pictures", *judged(queries, classes[chosen].tolist(), pool, classes, session))


def judged(
    queries: Sequence[Query], wanted: Sequence[str], pool: PicturePool, classes: np.ndarray, session: Session
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether each picture is a hit of each query, but for the query itself, and its score and cosine."""
    of = dict(zip(pool.paths, classes, strict=True))
    rows = [
        (of[hit.path] == name, hit.score, hit.similarity)
        for name, (query, hits) in zip(wanted, search(queries, pool, session, top_k=len(pool)), strict=True)
        for hit in hits
        if hit.path != query.text
    ]
    hits, scores, cosines = (np.array(column) for column in zip(*rows, strict=True))
    return hits, scores, cosines


def report(title: str, hits: np.ndarray, scores: np.ndarray, cosines: np.ndarray, at: float | None = None) -> None:
    for name, values in (("score", scores), ("cosine", cosines)):
        cuts = np.quantile(values, np.linspace(0.5, 1.0, 400))
        best, cut = max((f1(hits, values >= cut), float(cut)) for cut in cuts)
        fixed = f", at {at} {f1(hits, values >= at):.3f}" if at is not None and name == "score" else ""
        precision = average_precision_score(hits, values)
        print(f"  {title:18} {name:7} average precision {precision:.3f}, best F1 {best:.3f} (at {cut:.2f}){fixed}")


def f1(hits: np.ndarray, found: np.ndarray) -> float:
    return float(2 * (hits & found).sum() / (hits.sum() + found.sum()))


def measure_sums(pool: PicturePool, classes: np.ndarray, session: Session) -> None:
    random, names = np.random.default_rng(1), sorted(set(classes))
    of = dict(zip(pool.paths, classes, strict=True))
    chosen = random.permutation(len(pool))[:PAIRS]
    words = [str(random.choice([name for name in names if name != classes[i]])) for i in chosen]
    features = plain_features(names, session)
    ours, plain = [], []
    queries = [
        Query(f"{pool.paths[i]} + {word}", (Term(pool.paths[i], is_picture=True), Term(word)))
        for i, word in zip(chosen, words, strict=True)
    ]
    for i, word, (_, hits) in zip(chosen, words, search(queries, pool, session, top_k=TOP + 1), strict=True):
        found = [of[hit.path] for hit in hits if hit.path != pool.paths[i]][:TOP]
        ours.append(min(found.count(classes[i]), found.count(word)))
        (sums,) = pool.products((pool.rows(np.array([i]))[0] + features[word])[None])
        sums[i] = -np.inf
        summed = classes[np.argsort(-sums, kind="stable")[:TOP]].tolist()
        plain.append(min(summed.count(classes[i]), summed.count(word)))
    for name, fewest in (("search", np.array(ours)), ("plain sum", np.array(plain))):
        print(
            f"  picture + word     {name:9} both {(fewest >= 1).mean():.3f}, three of both {(fewest >= 3).mean():.3f}"
        )


def plain_features(names: Sequence[str], session: Session) -> dict[str, np.ndarray]:
    from clipcls.embed.texts import embed_texts

    return {
        name: text.features.astype(np.float64)
        for name, text in zip(names, embed_texts([(name,) for name in names], session), strict=True)
    }


if __name__ == "__main__":
    main()
