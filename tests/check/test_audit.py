"""How often words that hurt are nearer to pictures than neutral ones, with colours for words."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clipcls.check.audit import WORDS_FILE, Audit, Category, audit_words, read_categories
from clipcls.check.findings import Finding
from clipcls.check.labels import Wording
from clipcls.check.preflight import preflight
from clipcls.embed.execution import Execution
from clipcls.embed.session import Session
from clipcls.labels.prompts import templates_set
from clipcls.records import ModelSpec
from conftest import FakeEncoder

COLOURS = (Category("colours", ("red", "reddish"), ("green", "greenish")),)
BLUE = np.array([[0, 0, 1]], np.float32)


class Shades(FakeEncoder):
    """Knows two more words."""

    COLOURS = FakeEncoder.COLOURS | {"reddish": (255, 90, 0), "greenish": (90, 255, 0)}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty pictures: 10 red, 4 reddish, 20 green, 6 blue with some red."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    shades = {"red": 10, "reddish": 4, "green": 20}
    colours = [Shades.COLOURS[name] for name, count in shades.items() for _ in range(count)] + [(90, 0, 255)] * 6
    for number, colour in enumerate(colours):
        Image.new("RGB", (8, 8), colour).save(folder / f"{number:02}.png")
    return folder


def audited(
    *inputs: Path, categories: Sequence[Category] = COLOURS, encoder: Any = None, shows_words: bool = False
) -> list[Finding]:
    audit = Audit(tuple(map(str, inputs)), shows_words)
    with Session(encoder or Shades(), Execution()) as session:
        return list(audit_words(audit, BLUE, templates_set(["a {}"]), session, categories))


def test_pictures_nearer_to_words_that_hurt_are_counted_with_intervals(pictures: Path) -> None:
    opening, found = audited(pictures)
    assert (opening.level, opening.subject, found.level, found.subject) == ("note", "audit", "note", "audit")
    assert opening.message == "40 pictures; words that hurt, beside as many neutral ones"
    # the blue ones are nearer to red than to green, but nearest to their label
    assert found.message == (
        "colours: a hurtful word is nearer than all neutral ones to 20 (50 %, 95 % interval 35 to 65 %), "
        "and than all labels, too, to 14 (35 %, 95 % interval 22 to 50 %)"
    )


def test_words_are_named_only_on_demand(pictures: Path) -> None:
    words = [word for category in COLOURS for word in category.words]
    assert not any(repr(word) in finding.message for finding in audited(pictures) for word in words)
    assert audited(pictures, shows_words=True)[1].message.endswith("of the first, 'red' 16, 'reddish' 4")
    green = [pictures / f"{number}.png" for number in range(14, 34)]
    assert "of the first" not in audited(*green, shows_words=True)[1].message


def test_pictures_that_cannot_be_read_are_counted_and_few_are_said_to_be(pictures: Path) -> None:
    (pictures / "bad.png").touch()
    assert audited(pictures)[0].message.startswith("40 pictures, and 1 that could not be read; words")
    assert "1 pictures; fewer than 30 say next to nothing" in audited(pictures / "00.png")[0].message
    (refused,) = audited(pictures / "bad.png")
    assert (refused.level, refused.exit_code) == ("error", 2)
    assert "no picture can be read" in refused.message and "bad.png" in refused.message
    (pictures.parent / "empty").mkdir()
    assert "There is none." in audited(pictures.parent / "empty")[0].message


def test_words_that_the_model_never_saw_are_not_measured(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("red\nreddish\ngreen\ngreenish\n")
    encoder = Shades()
    encoder.words = str(tmp_path)
    both = (*COLOURS, replace(COLOURS[0], name="others", neutral=("green", "mauve")))
    unmeasured, _, measured = audited(pictures, categories=both, encoder=encoder)
    assert unmeasured.message.startswith("not measured: others; the model was never trained on")
    assert measured.message.startswith("colours: ")
    assert len(audited(pictures, categories=both[1:], encoder=encoder)) == 1


@pytest.fixture
def findings(tiny_model: Path, pictures: Path) -> Iterator[Any]:
    def check(audit: Audit | None) -> list[Finding]:
        spec = ModelSpec(str(tiny_model), device="cpu", precision="fp32")
        found = preflight(spec, Wording(labels="cat,dog"), Execution(), audit=audit)
        return [finding for finding in found if finding.subject == "audit"]

    yield check


def test_a_check_audits_only_if_asked(findings: Any, pictures: Path) -> None:
    assert not findings(None)
    opening, *found = findings(Audit((str(pictures),)))
    assert opening.message.startswith("40 pictures")
    assert [finding.message.partition(":")[0] for finding in found] == [one.name for one in read_categories()]
    listed = [word for category in read_categories() for word in category.words]
    assert not any(repr(word) in finding.message for finding in found for word in listed)


def test_the_list_begins_with_a_warning_and_has_a_neutral_word_for_each_that_hurts() -> None:
    assert WORDS_FILE.read_text(encoding="utf-8").startswith("# WARNING: ")
    categories = read_categories()
    words = [word for category in categories for word in category.words]
    assert len(set(words)) == len(words)
    assert all(len(category.hurtful) == len(category.neutral) == 5 for category in categories)
