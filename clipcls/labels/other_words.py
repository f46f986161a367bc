"""Words for other things than the labels, which tell that a picture shows none of them.

The built-in list has some 10,000 English words for what can be seen, from WordNet (Miller 1995), and what they are
kinds of. examples/labels/make_words.py made it.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from clipcls.labels.label_files import label_key

WORDS_FILE = Path(__file__).parent / "wordnet" / "words.txt"
_ARTICLES = ("a ", "an ", "the ")
# ends of plurals, and what the singular has in their place
_PLURALS = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""), ("men", "man"), ("people", "person"))


@dataclass(frozen=True, slots=True)
class WordNet:
    """The built-in words, and the sets of synonyms that say what they mean.

    Attributes:
        words: for what can be seen, sorted.
        names: of each set; not all of them are among the words.
        hypernyms: the sets that each set is a kind of.
        hyponyms: the sets that are kinds of each set.
        sets: the sets that each name is in.
    """

    words: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    hypernyms: tuple[tuple[int, ...], ...]
    hyponyms: tuple[list[int], ...]
    sets: dict[str, list[int]]

    def relatives(self, texts: Iterable[str]) -> set[str]:
        """Return the names, as `label_key` gives them, that may be as right for a picture as these labels.

        They are the labels' own, their synonyms, and the words for kinds of them and for what they are kinds of. Of a
        compound that isn't in WordNet, such as *guide dog*, only what it is a kind of is known.
        """
        found: set[int] = set()
        keys = {_bare(text) for text in texts}
        for key in keys:
            own = self._sets_of(key)
            kinds = own or self._sets_of_head(key)
            found |= _reached(own, self.hyponyms) | _reached(kinds, self.hypernyms)
        return keys.union(*(map(str.lower, self.names[at]) for at in found))

    def _sets_of(self, key: str) -> list[int]:
        return [at for form in _forms(key) for at in self.sets.get(form, ())]

    def _sets_of_head(self, key: str) -> list[int]:
        """Return the sets of the longest known end of a compound."""
        parts = key.split(" ")
        heads = (self._sets_of(" ".join(parts[start:])) for start in range(1, len(parts)))
        return next(filter(None, heads), [])


@cache
def load_wordnet() -> WordNet:
    """Load the built-in words."""
    words: set[str] = set()
    names: list[tuple[str, ...]] = []
    hypernyms: list[tuple[int, ...]] = []
    hyponyms: list[list[int]] = []
    sets: dict[str, list[int]] = {}
    for at, line in enumerate(WORDS_FILE.read_text(encoding="utf-8").splitlines()):
        listed, others, kinds = line.split("\t")
        words.update(listed.split(", ") if listed else ())
        names.append(tuple(", ".join(filter(None, (listed, others))).split(", ")))
        hypernyms.append(tuple(map(int, kinds.split())))
        hyponyms.append([])
        for hypernym in hypernyms[-1]:
            hyponyms[hypernym].append(at)
        for name in names[-1]:
            sets.setdefault(name.lower(), []).append(at)
    return WordNet(tuple(sorted(words)), tuple(names), tuple(hypernyms), tuple(hyponyms), sets)


def _bare(text: str) -> str:
    key = label_key(text)
    return next((key.removeprefix(article) for article in _ARTICLES if key.startswith(article)), key)


def _forms(key: str) -> Iterator[str]:
    """Yield a name, and what may be its singular."""
    yield key
    for plural, singular in _PLURALS:
        if key.endswith(plural):
            yield key.removesuffix(plural) + singular


def _reached(starts: Iterable[int], edges: tuple[Iterable[int], ...]) -> set[int]:
    reached: set[int] = set()
    waiting = list(starts)
    while waiting:
        at = waiting.pop()
        if at not in reached:
            reached.add(at)
            waiting += edges[at]
    return reached
