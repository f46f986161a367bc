"""Say what words mean to a classifier of ImageNet's 1,000 classes: captions, each with weights of classes.

    python concepts.py [WORD ...]

prints how many captions there are, and what the given ones mean. The sources are the classes' own names (open_clip),
WordNet's synonyms and hypernyms (Debian's wordnet-base), the everyday words of dictionary.txt in English and Chinese,
and the Chinese names of emoji in Unicode CLDR (Debian's unicode-cldr-core).
"""

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import open_clip
import timm.data

HERE = Path(__file__).parent
WORDNET = Path("/usr/share/wordnet")
CLDR = Path("/usr/share/unicode/cldr/common/annotations")
CLASSES = 1000
HINT = 0.5  # weight of a class that is often in the picture with the thing
MAX_CLASSES = 600  # a word for more of them says nothing to a viewer
MAX_BORROWED = 30  # a word without a class borrows its ancestor's, if they are no more than these
MAX_HOPS = 2  # and the ancestor is no further than this
MAX_SENSE = 3  # a word means a thing only if that is one of its most frequent senses

Weights = tuple[tuple[int, float], ...]  # of classes, sorted by class


@dataclass(frozen=True, slots=True)
class Caption:
    """A word or name, and the classes that it means.

    Attributes:
        text: the word, in lower case.
        weights: (class, weight) in the classes' order; weights are 1 for a class that is the thing, less for a hint.
        kind: `class`, `wordnet`, `dictionary`, `chinese`, or `borrowed` where the classes are a relative's.
    """

    text: str
    weights: Weights
    kind: str


class WordNet:
    """The nouns of WordNet: what words a synset has, what is above it, and the senses of a word."""

    def __init__(self, folder: Path) -> None:
        self.words: dict[str, list[str]] = {}
        self.above: dict[str, list[str]] = {}
        self.senses: dict[str, list[str]] = {}  # most frequent first
        for line in _lines(folder / "data.noun"):
            fields = line.split(" | ")[0].split(" ")
            synset, count = f"n{fields[0]}", int(fields[3], 16)
            self.words[synset] = [fields[4 + 2 * i].replace("_", " ").lower() for i in range(count)]
            pointers = fields[5 + 2 * count :]
            self.above[synset] = [
                f"n{pointers[i + 1]}" for i in range(0, 4 * int(fields[4 + 2 * count]), 4) if pointers[i] in ("@", "@i")
            ]
        for line in _lines(folder / "index.noun"):
            fields = line.split()
            self.senses[fields[0].replace("_", " ")] = [f"n{offset}" for offset in fields[-int(fields[2]) :]]

    def ancestors(self, synset: str) -> Iterator[str]:
        """Yield a synset and all above it, each once."""
        seen, waiting = set(), [synset]
        while waiting:
            current = waiting.pop()
            if current not in seen:
                seen.add(current)
                yield current
                waiting += self.above[current]

    def rank(self, word: str, synset: str) -> int:
        """Return how many senses of a word are more frequent than this one."""
        senses = self.senses.get(word, [])
        return senses.index(synset) if synset in senses else len(senses)


def _lines(path: Path) -> Iterator[str]:
    if not path.is_file():
        raise SystemExit(f"{path} isn't there: apt-get install wordnet-base")
    with path.open(encoding="utf-8") as file:
        yield from (line for line in file if not line.startswith(" "))


@dataclass(frozen=True, slots=True)
class Hierarchy:
    """WordNet over the classes.

    Attributes:
        wordnet: the nouns.
        below: the classes below each synset that has any.
    """

    wordnet: WordNet
    below: dict[str, frozenset[int]]

    def classes_of(self, word: str) -> frozenset[int]:
        """Return the classes below the most frequent sense of a word that has any."""
        for synset in self.wordnet.senses.get(word, []):
            if synset in self.below:
                return self.below[synset]
        raise KeyError(word)


@cache
def hierarchy() -> Hierarchy:
    """Read WordNet, and find the classes below each of its synsets."""
    wordnet = WordNet(WORDNET)
    below = defaultdict(set)
    listed = Path(timm.data.__file__).parent / "_info" / "imagenet_synsets.txt"
    for number, synset in enumerate(listed.read_text(encoding="utf-8").split()):
        for ancestor in wordnet.ancestors(synset):
            below[ancestor].add(number)
    return Hierarchy(wordnet, {synset: frozenset(classes) for synset, classes in below.items()})


def class_names() -> list[str]:
    """Return open_clip's 1,000 names, in lower case and without what stands in parentheses."""
    return [re.sub(r"\s*\(.*?\)", "", name).lower() for name in open_clip.IMAGENET_CLASSNAMES]


def captions() -> list[Caption]:
    """Return all captions, each text once.

    Raises:
        ValueError: dictionary.txt names a class or a word that isn't known, or a word twice.
    """
    found: dict[str, Caption] = {}
    for caption in (*dictionary(HERE / "dictionary.txt"), *_named(), *_from_wordnet()):
        found.setdefault(caption.text, caption)
    for caption in _from_cldr(found):
        found.setdefault(caption.text, caption)
    for caption in _borrowed(found):
        found.setdefault(caption.text, caption)
    return list(found.values())


def _named() -> Iterator[Caption]:
    names = class_names()
    umbrellas = {caption.text for caption in _from_wordnet() if len(caption.weights) > 1}
    for name in dict.fromkeys(names):
        same = [number for number, other in enumerate(names) if other == name]
        if name not in umbrellas:
            yield Caption(name, tuple((number, 1.0) for number in same), "class")
    for number, name in enumerate(open_clip.IMAGENET_CLASSNAMES):
        if "(" in name:
            yield Caption(name.lower(), ((number, 1.0),), "class")


@cache
def _from_wordnet() -> tuple[Caption, ...]:
    """Return the words of the synsets that have a class, in the most frequent such sense."""
    wordnet, below = hierarchy().wordnet, hierarchy().below
    chosen: dict[str, tuple[int, str]] = {}
    for synset, classes in below.items():
        if len(classes) <= MAX_CLASSES:
            for word in wordnet.words[synset]:
                rank = wordnet.rank(word, synset)
                if _is_plain(word) and rank < MAX_SENSE and (word not in chosen or rank < chosen[word][0]):
                    chosen[word] = (rank, synset)
    return tuple(
        Caption(word, tuple((number, 1.0) for number in sorted(below[synset])), "wordnet")
        for word, (_, synset) in chosen.items()
    )


def _borrowed(known: dict[str, Caption]) -> Iterator[Caption]:
    """Yield words without a class of their own with their nearest ancestor's, if they cost no row of the table.

    A word must consist of tokens of CLIP's that other captions use anyway: each further row makes the model larger.
    """
    wordnet, below = hierarchy().wordnet, hierarchy().below
    tokenizer = open_clip.SimpleTokenizer()
    used = {token for caption in known.values() for token in tokenizer.encode(caption.text)}
    people = below[wordnet.senses["person"][0]]
    for word, senses in wordnet.senses.items():
        tokens = tokenizer.encode(word)
        if word in known or not _is_plain(word) or not used.issuperset(tokens):
            continue
        level = [senses[0]]
        for _ in range(MAX_HOPS):
            level = [above for synset in level for above in wordnet.above[synset]]
            classes = min((below[synset] for synset in level if synset in below), key=len, default=frozenset())
            if classes:
                if len(classes) <= MAX_BORROWED and not classes <= people:
                    yield Caption(word, tuple((number, 1.0) for number in sorted(classes)), "borrowed")
                break


def _is_plain(word: str) -> bool:
    return len(word) > 1 and word.count(" ") < 3 and not re.search(r"[\d.]", word)


def dictionary(path: Path) -> Iterator[Caption]:
    """Yield the captions of dictionary.txt.

    Raises:
        ValueError: a line isn't of four parts, names an unknown class, or a word that an earlier line has.
    """
    seen: set[str] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = [[item.strip() for item in part.split(",") if item.strip()] for part in line.split("|")]
        try:
            english, chinese, things, hints = parts
            weights = dict.fromkeys(_classes(hints), HINT) | dict.fromkeys(_classes(things), 1.0)
        except (ValueError, KeyError) as exc:
            raise ValueError(f"{path.name}, line {number}: {exc}") from None
        for text, kind in (*((word, "dictionary") for word in english), *((word, "chinese") for word in chinese)):
            if text in seen:
                raise ValueError(f"{path.name}, line {number}: {text!r} has a line already")
            seen.add(text)
            yield Caption(text.lower(), tuple(sorted(weights.items())), kind)


def _classes(names: Iterable[str]) -> set[int]:
    """Return the classes that the names of a line stand for; `-@word` takes away those of `@word`."""
    classes: set[int] = set()
    known = class_names()
    for name in names:
        if name.startswith("-@"):
            classes -= hierarchy().classes_of(name[2:])
        elif name.startswith("@"):
            classes |= hierarchy().classes_of(name[1:])
        elif name.lower() not in known:
            raise ValueError(f"no class is called {name!r}")
        else:
            classes |= {number for number, other in enumerate(known) if other == name.lower()}
    return classes


def _from_cldr(known: dict[str, Caption]) -> Iterator[Caption]:
    """Yield Chinese names of the emoji whose English name is a caption."""
    english, chinese = _emoji_names("en"), _emoji_names("zh")
    for sign, name in english.items():
        caption = known.get(name.removesuffix(" face").replace("-", " "))
        if caption and sign in chinese:
            yield Caption(chinese[sign].removesuffix("脸").removesuffix("头"), caption.weights, "chinese")


def _emoji_names(language: str) -> dict[str, str]:
    path = CLDR / f"{language}.xml"
    if not path.is_file():
        raise SystemExit(f"{path} isn't there: apt-get install unicode-cldr-core")
    annotations = ElementTree.parse(path).getroot().iter("annotation")
    return {one.get("cp", ""): (one.text or "").strip().lower() for one in annotations if one.get("type") == "tts"}


_IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice", "foot": "feet",
    "goose": "geese", "wolf": "wolves", "knife": "knives", "leaf": "leaves", "loaf": "loaves", "shelf": "shelves",
    "scarf": "scarves", "fish": "fish", "sheep": "sheep", "deer": "deer", "ox": "oxen",
}  # fmt: skip


def plural(name: str) -> str:
    """Return the plural of an English name; a guess that is right for most."""
    head, _, last = name.rpartition(" ")
    if last in _IRREGULAR:
        last = _IRREGULAR[last]
    elif last.endswith("man") and len(last) > 4:
        last = last[:-3] + "men"
    elif re.search(r"[^aeiou]y$", last):
        last = last[:-1] + "ies"
    else:
        last += "es" if re.search(r"(s|x|z|ch|sh)$", last) else "s"
    return f"{head} {last}".strip()


if __name__ == "__main__":
    listed = captions()
    print(len(listed), "captions:", dict(Counter(caption.kind for caption in listed)))
    print(len({caption.weights for caption in listed}), "meanings")
    by_text = {caption.text: caption for caption in listed}
    for word in sys.argv[1:]:
        meant = by_text[word].weights if word in by_text else ()
        print(word, {class_names()[number]: weight for number, weight in meant})
