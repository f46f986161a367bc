"""Put things into groups in which all are near to all others."""

from clipcls.predict.neighbours import NearPairs


def complete_linkage(count: int, pairs: NearPairs) -> list[list[int]]:
    """Return groups of things every two of which are a pair, so that a chain of near ones doesn't become a group.

    Those groups are merged first whose farthest pair is the nearest. Of equally near pairs, the one whose members come
    first counts first.

    Args:
        count: the number of things.
        pairs: the near ones, nearest first.

    Returns:
        Every thing's group, in the order of their first members; groups of one included.
    """
    group = list(range(count))
    members = [[thing] for thing in range(count)]
    links: list[dict[int, int]] = [{} for _ in range(count)]  # pairs so far between two groups
    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        one, other = sorted((group[first], group[second]))
        links[one][other] = links[other][one] = links[one].get(other, 0) + 1
        if links[one][other] < len(members[one]) * len(members[other]):
            continue
        for thing in members[other]:
            group[thing] = one
        members[one] += members[other]
        members[other] = []
        del links[one][other], links[other][one]
        for third, number in links[other].items():
            del links[third][other]
            links[one][third] = links[third][one] = links[one].get(third, 0) + number
        links[other] = {}
    return [sorted(found) for found in members if found]
