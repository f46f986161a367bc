"""Attacks that change pictures, and their figures."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipcls.embed.execution import Execution
from clipcls.embed.watch import Watch
from clipcls.errors import UsageError
from clipcls.evaluate.attacks.corruptions import CORRUPTIONS, Corruptions
from clipcls.evaluate.attacks.pictures import Variant
from clipcls.evaluate.attacks.results import judge_variants
from clipcls.evaluate.attacks.run import AttackKind, AttackPlan, attack
from clipcls.evaluate.attacks.text import SIZES, Notes, TextAttack, choose_notes, draw_note
from clipcls.evaluate.evaluate import EvalPlan, evaluate
from clipcls.images.decoding import decode_picture
from clipcls.images.fit import fit
from clipcls.images.geometry import Picture
from clipcls.inputs.labelled.read import read_truth
from clipcls.labels.label_files import make_label
from clipcls.records import Label, ModelSpec, Preprocessing
from conftest import FakeEncoder

SMALL = Preprocessing((64, 64), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
LABELS = tuple(map(make_label, ("red", "green", "blue")))


def picture(size: tuple[int, int] = (300, 200), seed: int = 0) -> Picture:
    random = np.random.default_rng(seed)
    pixels = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
        size, Image.Resampling.BICUBIC
    )
    return Picture(np.array(pixels), size, size)


# ---------------------------------------------------------------------------------------------------------
# Notes


def test_a_note_of_no_size_leaves_the_picture_and_others_cover_their_share() -> None:
    notes = Notes(np.array([1, 2]), np.array([0, 4]))
    made = TextAttack(LABELS, notes, [3, 8], SMALL, tuple(range(len(SIZES))))
    for place in (3, 8):
        original = picture()
        kept, *changed, blank = made.change(original, place)
        assert kept is original
        before = np.asarray(original.image)
        for share, each in zip(SIZES[1:], changed, strict=True):
            differs = (np.asarray(each.image) != before).any(axis=2)
            # the model sees the middle of 200 × 200
            assert differs.sum() == pytest.approx(share * 200 * 200, rel=0.12)
            assert not differs[:, :50].any() and not differs[:, 250:].any()
        assert np.asarray(blank.image).min(axis=2)[differs].min() > 240
        assert np.asarray(changed[-1].image).min(axis=2)[differs].min() < 100
        assert (np.asarray(original.image) == before).all()


@pytest.mark.parametrize("size", [(5, 3), (1, 900), (2000, 12)])
def test_notes_fit_pictures_of_any_form(size: tuple[int, int]) -> None:
    label = make_label("a very long label that has a great many words in it")
    made = TextAttack([label], Notes(np.array([0]), np.array([3])), [0], SMALL, None)
    for changed in made.change(picture(size), 0):
        assert fit(changed, SMALL).shape == (64, 64, 3)


def test_notes_say_another_label_and_depend_on_the_picture_alone() -> None:
    labels = (*LABELS, make_label("Red"))
    truth = np.array([0, 1, 2, 3, 9] * 40)
    chosen = choose_notes(labels, truth, range(200), 0)
    # red and Red are written alike
    alike = {(0, 0), (0, 3), (3, 3), (3, 0), (1, 1), (2, 2)}
    assert not alike & set(zip(truth.tolist(), chosen.labels.tolist(), strict=True))
    assert set(chosen.places.tolist()) == {0, 1, 2, 3, 4}
    later = choose_notes(labels, truth[100:], range(100, 200), 0)
    assert (later.labels == chosen.labels[100:]).all() and (later.places == chosen.places[100:]).all()
    other = choose_notes(labels, truth, range(200), 1)
    assert (other.labels != chosen.labels).any()
    with pytest.raises(UsageError, match="give more labels"):
        choose_notes(labels[:1], np.array([0]), [0], 0)


def test_long_texts_are_broken() -> None:
    one, several = draw_note("cat"), draw_note("a fire engine in front of a house")
    assert one.width < several.width and several.width / several.height < 5


# ---------------------------------------------------------------------------------------------------------
# Faults


def test_faults_grow_with_their_severity_and_are_the_same_each_time() -> None:
    original = picture((500, 360))
    made = Corruptions(SMALL, (0, 1, 2, 3, 4, 5), 0)
    changed = list(made.change(original, 7))
    again = [fit(each, SMALL) for each in made.change(original, 7)]
    other = [fit(each, SMALL) for each in made.change(original, 8)]
    plain = fit(original, SMALL).astype(float)
    assert [variant.name for variant in made.variants[::6]] == list(CORRUPTIONS)
    apart = []
    for each, repeated, variant in zip(changed, again, made.variants, strict=True):
        fitted = fit(each, SMALL)
        assert (fitted == repeated).all()
        assert (each is original) == (variant.severity == 0)
        apart.append(np.abs(fitted - plain).mean())
    for name, distances in zip(CORRUPTIONS, np.reshape(apart, (-1, 6)), strict=True):
        grows = np.diff(distances) > 0
        # other parts of a picture may be as unlike as they get
        assert distances[0] == 0 and grows[: 1 if name in ("crop", "rotate") else None].all(), name
    differs = [(one != two).any() for one, two in zip(again, other, strict=True)]
    assert {variant.name for variant, is_other in zip(made.variants, differs, strict=True) if is_other} <= {
        *("noise", "crop", "rotate"),
    }


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_faults_take_pictures_of_any_form(mode: str) -> None:
    for size in ((1, 1), (3, 700), (40, 30)):
        image = Image.new(mode, size, 90)
        for changed in Corruptions(SMALL, (1, 5), 0).change(Picture(image, size, size), 0):
            assert fit(changed, SMALL).shape == (64, 64, 3)


def test_weak_faults_keep_a_picture_in_its_place(tmp_path: Path) -> None:
    """A large JPEG is decoded at a reduced scale, whose edge is rounded up, and turned."""
    image = Image.fromarray(np.asarray(picture((1803, 1005)).image))
    exif = Image.Exif()
    exif[0x0112] = 3
    image.save(tmp_path / "p.jpg", exif=exif)
    decoded = decode_picture(tmp_path / "p.jpg", SMALL)
    assert decoded.origin != (0.0, 0.0)
    plain = fit(decoded, SMALL).astype(float)
    made = Corruptions(SMALL, (1,), 0)
    for variant, changed in zip(made.variants, made.change(decoded, 0), strict=True):
        if variant.name in ("blur", "noise", "JPEG", "low resolution"):
            assert np.abs(fit(changed, SMALL) - plain).mean() < 8, variant.name


# ---------------------------------------------------------------------------------------------------------
# Runs


@pytest.fixture
def colours(tmp_path: Path) -> Iterator[Path]:
    random = np.random.default_rng(5)
    for name, channel in (("red", 0), ("green", 1), ("blue", 2)):
        folder = tmp_path / "data" / name
        folder.mkdir(parents=True)
        for number in range(4):
            pixels = random.integers(0, 120, (30, 40, 3), dtype=np.uint8)
            pixels[:, :, channel] += 40
            Image.fromarray(pixels).save(folder / f"{number}.png")
    yield tmp_path / "data"


@pytest.mark.parametrize("kind", ["text", "corrupt"])
def test_severity_0_is_plain_eval_and_nothing_changed_is_cached(
    kind: AttackKind, colours: Path, tmp_path: Path
) -> None:
    (colours / "red" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    truth = read_truth([str(colours)])
    execution = Execution(cache_dir=tmp_path / "cache", batch_size=5)
    plan = AttackPlan(kind, truth.labels, FakeEncoder, execution=execution, severities=(0, 2))
    outcome = attack(truth, plan)
    # after the attack, from its cache
    plain = evaluate(truth, EvalPlan(truth.labels, (FakeEncoder,), execution=execution))
    uncached = evaluate(truth, EvalPlan(truth.labels, (FakeEncoder,), execution=Execution()))
    expected = uncached.results[0].figures["accuracy@1"]
    assert plain.results[0].figures["accuracy@1"] == expected
    assert outcome.plain == expected
    assert (outcome.measured, outcome.images, len(outcome.failed)) == (12, 13, 1)
    for figures in outcome.variants:
        if figures.variant.severity == 0:
            assert figures.accuracy == expected
            assert (figures.drop.value, figures.drop.low, figures.drop.high) == (0, 0, 0)
    assert attack(truth, plan) == outcome
    if kind == "corrupt":
        grey = next(f for f in outcome.variants if (f.variant.name, f.variant.severity) == ("grey", 2))
        assert grey.accuracy.value > 0.5
        assert [fault.relative_drop.value for fault in outcome.faults] == sorted(
            (fault.relative_drop.value for fault in outcome.faults), reverse=True
        )


def test_a_limit_draws_some_pictures_and_each_has_the_note_that_it_always_has(colours: Path) -> None:
    truth = read_truth([str(colours)])
    plan = AttackPlan("text", truth.labels, FakeEncoder, execution=Execution(), severities=(4,), limit=6)
    outcome = attack(truth, plan)
    assert (outcome.images, outcome.chosen, outcome.measured) == (12, 6, 6)
    assert outcome.notes is not None
    assert sum(share.whole for share in outcome.notes.places.values()) <= 6


@pytest.mark.usefixtures("one_thread")
def test_noise_leaves_out_what_cannot_be_read_and_stands_on_the_plain_answers(
    colours: Path, tiny_model: Path, tmp_path: Path
) -> None:
    (colours / "green" / "0.png").write_bytes(b"")
    truth = read_truth([str(colours)])
    # green isn't among the labels, so that its pictures are wrong as they are
    labels = (LABELS[0], LABELS[2])
    watched: list[tuple[str, str]] = []
    plan = AttackPlan("adversarial", labels, ModelSpec(str(tiny_model)), execution=Execution(batch_size=7))
    outcome = attack(truth, plan, Watch(failed=lambda path, error: watched.append((path, error))))
    assert (outcome.measured, watched) == (11, [(str(colours / "green" / "0.png"), "empty file")])
    plain = evaluate(truth, EvalPlan(labels, (ModelSpec(str(tiny_model), precision="fp32"),), execution=Execution()))
    assert outcome.plain == plain.results[0].figures["accuracy@1"]
    weak, strong = (figures.success for figures in outcome.variants)
    assert weak is not None and strong is not None
    assert weak.whole == strong.whole == round(11 * outcome.plain.value)
    assert weak.part <= strong.part


@pytest.mark.parametrize(
    ("kind", "severities", "labels", "message"),
    [
        ("text", (5,), LABELS, "--severity: --attack text has those from 0"),
        ("adversarial", (1,), LABELS, "--severity is for --attack text and corrupt"),
        ("corrupt", None, LABELS[:1], "needs a second label"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    kind: AttackKind, severities: tuple[int, ...] | None, labels: tuple[Label, ...], message: str, colours: Path
) -> None:
    truth = read_truth([str(colours)])
    with pytest.raises(UsageError, match=message):
        attack(truth, AttackPlan(kind, labels, FakeEncoder, execution=Execution(), severities=severities))


def test_figures_are_those_counted_by_hand() -> None:
    plain = np.array([True, True, True, False])
    attacked = np.array([[True, False, True, True], [False, False, False, True]])
    became = np.array([[False, True, False, False], [False, True, True, False]])
    other = np.array([True, True, True, False])
    variants = (Variant("note", 1, ""), Variant("note", 2, ""))
    accuracy, (first, second), (fault,) = judge_variants(plain, attacked, variants, became, other)
    assert accuracy.value == 0.75
    assert (first.accuracy.value, first.drop.value, first.relative_drop.value) == (0.75, 0, 0)
    assert (second.accuracy.value, second.drop.value) == (0.25, 0.5)
    assert second.relative_drop.value == pytest.approx(2 / 3)
    assert first.success is not None and second.success is not None
    assert [(share.part, share.whole) for share in (first.success, second.success)] == [(1, 3), (2, 3)]
    assert fault.relative_drop.value == pytest.approx(1 / 3)
