"""The nearest pictures, and groups of them."""

import numpy as np
import pytest

from clipcls.predict import neighbours
from clipcls.predict.linkage import complete_linkage
from clipcls.predict.neighbours import NearPairs, near_pairs

Found = set[tuple[int, int]]


def features(count: int, seed: int = 0) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    chance = np.random.default_rng(seed)
    made = chance.standard_normal((count, 6)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def pairs_of(pairs: NearPairs) -> Found:
    return set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True))


def by_brute_force(vectors: "np.ndarray[tuple[int, int], np.dtype[np.float32]]", least: float, most: int) -> Found:
    cosines = vectors.astype(np.float64) @ vectors.astype(np.float64).T
    np.fill_diagonal(cosines, -2)
    found = set()
    for one, row in enumerate(cosines):
        for other in np.lexsort((np.arange(len(row)), -row))[:most]:
            if row[other] >= least:
                found.add((min(one, int(other)), max(one, int(other))))
    return found


@pytest.mark.parametrize("least", [-1.0, 0.5, 0.9])
@pytest.mark.parametrize("most", [1, 3, 200])
@pytest.mark.parametrize("block", [7, 64, 1024])
def test_pairs_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch, least: float, most: int, block: int) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", block)
    vectors = features(100)
    pairs = near_pairs(vectors, least, most)
    assert pairs_of(pairs) == by_brute_force(vectors, least, most)
    assert len(pairs.first) == len(pairs_of(pairs))
    assert (pairs.first < pairs.second).all()
    assert (np.diff(pairs.cosines) <= 0).all()
    np.testing.assert_allclose(pairs.cosines, (vectors[pairs.first] * vectors[pairs.second]).sum(axis=1), atol=1e-6)


def test_equally_near_ones_come_in_their_order() -> None:
    same = np.tile(np.array([[1.0, 0.0]], dtype=np.float32), (9, 1))
    pairs = near_pairs(same, 0.9, 2)
    expected = {(0, 1), (0, 2), (1, 2), *((one, other) for other in range(3, 9) for one in (0, 1))}
    assert pairs_of(pairs) == expected


@pytest.mark.parametrize("count", [0, 1])
def test_few_pictures_have_no_pairs(count: int) -> None:
    assert len(near_pairs(features(count), 0.5, 8).first) == 0


def naive_linkage(cosines: "np.ndarray[tuple[int, int], np.dtype[np.float64]]", least: float) -> list[list[int]]:
    groups = [[thing] for thing in range(len(cosines))]
    while True:
        best = max(
            (
                (float(cosines[np.ix_(one, other)].min()), -one[0], -other[0])
                for place, one in enumerate(groups)
                for other in groups[place + 1 :]
            ),
            default=(-2.0, 0, 0),
        )
        if best[0] < least:
            return sorted(map(sorted, groups))
        one, other = (next(group for group in groups if group[0] == -first) for first in best[1:])
        groups = [group for group in groups if group not in (one, other)]
        groups.append(sorted([*one, *other]))
        groups.sort()


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("least", [0.3, 0.6, 0.9])
def test_groups_are_those_of_complete_linkage(seed: int, least: float) -> None:
    vectors = features(40, seed)
    found = complete_linkage(40, near_pairs(vectors, least, 40))
    assert found == naive_linkage(vectors.astype(np.float64) @ vectors.T.astype(np.float64), least)


def test_a_chain_is_not_one_group() -> None:
    angles = np.radians(np.arange(0, 90, 10))
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    groups = complete_linkage(9, near_pairs(vectors, float(np.cos(np.radians(15))), 9))
    assert max(map(len, groups)) == 2
    assert sorted(thing for group in groups for thing in group) == list(range(9))
