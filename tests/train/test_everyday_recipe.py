"""The recipe of the embedded model for photographs: what words mean, and a model that means the same."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from torch import Tensor, nn

import concepts
import make
from clipcls import ModelSpec, load_encoder
from clipcls.labels.vocabulary import read_words
from concepts import Caption, captions, class_names, dictionary

pytestmark = pytest.mark.usefixtures("one_thread", "no_curves")

TABBY, PERSIAN, SPORTS_CAR, BANANA = 281, 283, 817, 954
ABOVE = {281: "cat", 282: "cat", 283: "cat", 284: "cat", 285: "cat", 436: "car", 817: "car"}


@pytest.fixture(scope="module", autouse=True)
def small_wordnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """WordNet's, CLDR's and the dictionary's files with a few entries, in place of the real ones."""
    folder = tmp_path_factory.mktemp("wordnet")
    synsets = (Path(timm.data.__file__).parent / "_info" / "imagenet_synsets.txt").read_text().split()
    nouns = {"n00000001": (["entity"], ""), "n00000002": (["bank"], "n00000001"), "n00000003": (["cat"], "n00000001")}
    nouns |= {"n00000004": (["cat", "true_cat"], "n00000001"), "n00000005": (["car", "auto"], "n00000001")}
    nouns |= {"n00000006": (["person"], "n00000001"), "n00000007": (["banana_cat"], "n00000004")}
    homes = {"cat": "n00000004", "car": "n00000005"}
    for number, synset in enumerate(synsets):
        above = "n00000006" if number == 981 else homes[ABOVE[number]] if number in ABOVE else "n00000001"
        nouns[synset] = ([f"thing {class_names()[number]}".replace(" ", "_")], above)
    senses: dict[str, list[str]] = {}
    data, index = ["  1 a licence"], ["  1 a licence"]
    for synset, (words, above) in nouns.items():
        pointers = f"001 @ {above[1:]} n 0000" if above else "000"
        listed = " ".join(f"{word} 0" for word in words)
        data.append(f"{synset[1:]} 05 n {len(words):02x} {listed} {pointers} | what it means")
        for word in words:
            senses.setdefault(word, []).append(synset[1:])
    index += [f"{word} n {len(found)} 1 @ {len(found)} 0 {' '.join(found)}" for word, found in senses.items()]
    (folder / "data.noun").write_text("\n".join(data) + "\n", encoding="utf-8")
    (folder / "index.noun").write_text("\n".join(index) + "\n", encoding="utf-8")
    for language, names in {"en": ("cat face", "banana"), "zh": ("猫脸", "香蕉")}.items():
        entries = "".join(f'<annotation cp="{sign}" type="tts">{name}</annotation>' for sign, name in enumerate(names))
        (folder / f"{language}.xml").write_text(f"<ldml>{entries}</ldml>", encoding="utf-8")
    (folder / "dictionary.txt").write_text("kitten, puss | 小猫 | @cat, -@auto | sports car\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WORDNET", "CLDR", "HERE"):
            patch.setattr(concepts, name, folder)
        concepts.hierarchy.cache_clear()
        concepts._from_wordnet.cache_clear()
        yield folder
    concepts.hierarchy.cache_clear()
    concepts._from_wordnet.cache_clear()


def test_a_word_means_the_classes_below_its_most_frequent_sense_that_has_any() -> None:
    found = {caption.text: caption for caption in captions()}
    assert found["cat"] == Caption("cat", tuple((number, 1.0) for number in range(281, 286)), "wordnet")
    assert found["auto"].weights == ((436, 1.0), (SPORTS_CAR, 1.0))
    assert found["banana"] == Caption("banana", ((BANANA, 1.0),), "class")
    assert found["猫"].weights == found["cat"].weights and found["香蕉"].kind == "chinese"
    # without a class of its own it has its ancestor's
    assert found["banana cat"] == Caption("banana cat", found["cat"].weights, "borrowed")
    assert "bank" not in found and "entity" not in found
    # names that two classes share
    assert [number for number, _ in found["sunglasses"].weights] == [836, 837]


def test_the_dictionary_comes_first_and_hints_weigh_half() -> None:
    found = {caption.text: caption for caption in captions()}
    assert found["kitten"].weights == (*found["cat"].weights, (SPORTS_CAR, 0.5))
    assert found["小猫"].kind == "chinese" and found["小猫"].weights == found["puss"].weights


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("cat | 猫 | tabby cat", "line 1: not enough values"),
        ("cat | 猫 | no such class |", "line 1: no class is called 'no such class'"),
        ("cat | 猫 | @dinosaur |", "line 1: 'dinosaur'"),
        ("cat | 猫, cat | tabby cat |", "line 1: 'cat' has a line already"),
    ],
)
def test_a_wrong_line_of_the_dictionary_is_named(line: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text(line, encoding="utf-8")
    with pytest.raises(ValueError, match=f"words.txt, {message}"):
        list(dictionary(tmp_path / "words.txt"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("cat", "cats"), ("city bus", "city buses"), ("pony", "ponies"), ("monkey", "monkeys"), ("knife", "knives"),
     ("fireman", "firemen"), ("sheep", "sheep"), ("church", "churches")],
)  # fmt: skip
def test_plurals(name: str, expected: str) -> None:
    assert concepts.plural(name) == expected


@pytest.fixture(scope="module")
def tower() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(make.TOWER, pretrained=False).eval()


def test_prototypes_say_what_the_classifier_says(tower: nn.Module) -> None:
    """A label has the score that the probabilities of its classes make, whether it is one class or several."""
    torch.manual_seed(1)
    meanings = make.Meanings.of([Caption("cat", tuple((number, 1.0) for number in range(281, 286)), "wordnet")])
    prototypes = make.train_prototypes(tower.classifier, meanings, steps=5)
    simulation = make.Simulation(tower.classifier)
    clear = 9 * simulation.direction[torch.tensor([TABBY, PERSIAN, BANANA, SPORTS_CAR])] + simulation.bias
    scores = prototypes.image_features(clear) @ prototypes.text_features().T
    assert scores[:, meanings.single].argmax(1).tolist() == [TABBY, PERSIAN, BANANA, SPORTS_CAR]
    cat, banana = meanings.row[tuple((number, 1.0) for number in range(281, 286))], meanings.single[BANANA]
    assert (scores[:3, cat] > scores[:3, banana]).tolist() == [True, True, False]


def test_simulated_pictures_show_what_they_are_of(tower: nn.Module) -> None:
    torch.manual_seed(3)
    simulation = make.Simulation(tower.classifier)
    of = torch.arange(make.CLASSES)
    logits = simulation.draw(of)
    mean = torch.stack([simulation.draw(of)[of, of] for _ in range(4)]).mean()
    assert abs(float(mean) - make.OWN_LOGIT) < 0.5
    assert (logits.argsort(descending=True)[:, :20] == of[:, None]).any(1).float().mean() > 0.8
    assert not (simulation.alike == of[:, None]).any()


def test_a_model_is_made_that_loads_and_means_what_its_prototypes_mean(tower: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(2)
    listed = [caption for caption in captions() if caption.kind != "class" or caption.text in ("banana", "tench")]
    meanings = make.Meanings.of(listed)
    prototypes = make.train_prototypes(tower.classifier, meanings, steps=2)
    text = make.TextTower(listed, prototypes, meanings)
    started = nearness(text, listed)
    text.train(steps=12, batch=64)
    assert nearness(text, listed) > max(0.5, started)
    make.save(tmp_path, tower, prototypes, text, listed)

    encoder = load_encoder(ModelSpec(str(tmp_path), device="cpu", precision="fp32"))
    names = ["cat", "a photo of a banana", "小猫"]
    with torch.no_grad():
        expected = text.tower.eval() and text.encode(names).numpy()
    assert np.abs(encoder.encode_text(names) - expected).max() < 0.02  # rounded weights
    pixels = np.random.default_rng(0).integers(0, 256, (2, 3, make.SIZE, make.SIZE), dtype=np.uint8)
    with torch.no_grad():
        logits = tower((torch.from_numpy(pixels) / 255 - 0.5) / 0.5)
    reference, _, _ = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    with torch.no_grad():
        features = reference.eval().encode_image((torch.from_numpy(pixels) / 255 - 0.5) / 0.5, normalize=True)
    assert (features - prototypes.image_features(logits)).abs().max() < 0.02
    words = read_words(tmp_path)
    assert words is not None and {"cat", "cats", "小猫", "banana"} <= words and "entity" not in words


def nearness(text: make.TextTower, listed: list[Caption]) -> float:
    with torch.no_grad():
        features: Tensor = text.encode([caption.text for caption in listed])
    wanted = torch.stack([text.target[caption.text] for caption in listed])
    return float((features * wanted).sum(1).mean())


def test_weights_that_arent_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"fetch\.sh"):
        make.image_tower(tmp_path)
