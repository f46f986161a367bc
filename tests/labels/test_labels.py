"""Labels from options and files: what is shown, what is prompted, what is refused."""

import re
from pathlib import Path

import pytest

from clipcls.errors import UsageError
from clipcls.labels.label_files import make_label, parse_labels, read_labels, refuse_duplicates
from clipcls.records import Label


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def names(labels: list[Label] | tuple[Label, ...]) -> list[str]:
    return [label.name for label in labels]


# ------------------------------------------------------------------------------------------- options


def test_labels_sources_keep_their_order(tmp_path: Path) -> None:
    file = write(tmp_path, "more.txt", "fox\nowl\n")
    assert names(parse_labels("cat, dog", ["crane, bird"], file)) == ["cat", "dog", "crane, bird", "fox", "owl"]


def test_labels_single_is_never_split() -> None:
    assert names(parse_labels(single=["crane, bird"])) == ["crane, bird"]


def test_labels_name_is_shown_as_given_and_prompted_in_plain_words() -> None:
    assert make_label(" hot_dog ") == Label(name="hot_dog", texts=("hot dog",))
    assert make_label("a__b \t c").texts == ("a b c",)


def test_labels_synonyms_are_further_texts_without_repeats() -> None:
    assert make_label("hot_dog", ["hot dog", "frankfurter"]).texts == ("hot dog", "frankfurter")


@pytest.mark.parametrize("text", ["", "cat,", ",cat", "cat,,dog", "cat, ,dog", "cat,_"])
def test_labels_empty_one_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="mpty label"):
        parse_labels(text)


@pytest.mark.parametrize(("synonyms", "prompts"), [([""], []), (["  "], []), ([], [" "]), ([], [""])])
def test_labels_empty_synonym_or_prompt_is_refused(synonyms: list[str], prompts: list[str]) -> None:
    with pytest.raises(UsageError, match="cat"):
        make_label("cat", synonyms, prompts)


def test_labels_none_at_all_is_refused() -> None:
    with pytest.raises(UsageError, match="No labels"):
        parse_labels()


@pytest.mark.parametrize("text", ["c\udcffat", "\ud800"])
def test_labels_invalid_unicode_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        make_label(text)


@pytest.mark.parametrize(
    ("text", "meant"),
    [("cat;dog", "cat,dog"), ("猫，狗、卡车", "猫,狗,卡车"), ("قط، كلب", "قط,كلب"), ("cat,dog;truck", "cat,dog,truck")],
)
def test_labels_other_separators_are_named(text: str, meant: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"Did you mean --labels '{meant}'?")):
        parse_labels(text)
    assert names(parse_labels(single=[text])) == [text]


def test_labels_a_file_given_as_labels_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, "labels.txt", "cat\ndog\n")
    with pytest.raises(UsageError, match=r"a file\. Did you mean --labels-file "):
        parse_labels(str(file))


def test_labels_of_several_lists_add_up() -> None:
    assert names(parse_labels(["cat,dog", "truck, bus"])) == ["cat", "dog", "truck", "bus"]


@pytest.mark.parametrize("text", ["ca\u200bt", "\ufeffcat", "cat\u2060", "\u200ecat\u200f", "cat\u200d"])
def test_labels_without_signs_that_nothing_shows(text: str) -> None:
    assert make_label(text) == make_label("cat")
    assert make_label("\U0001f469\u200d\U0001f680").texts == ("\U0001f469\u200d\U0001f680",)


# ------------------------------------------------------------------------------------------- duplicates


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("cat", "cat"),
        ("cat", "CAT"),
        ("hot_dog", "hot dog"),
        ("hot  dog", "hot\tdog"),
        ("cat", "ｃａｔ"),
        ("hot_dog", "hot＿dog"),
        ("caf\u00e9", "cafe\u0301"),
        ("Straße", "STRASSE"),
        ("ﬁsh", "fish"),
    ],
)
def test_labels_that_mean_the_same_are_refused(first: str, second: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_labels(single=[first, second])
    assert repr(first) in str(caught.value) and repr(second) in str(caught.value)


def test_labels_synonym_equal_to_another_label_is_refused() -> None:
    with pytest.raises(UsageError, match="'kitty' and 'Cat'"):
        refuse_duplicates([make_label("kitty", ["cat"]), make_label("Cat")])
    with pytest.raises(UsageError, match="split the score"):
        refuse_duplicates([make_label("a", ["x"]), make_label("b", ["X"])])


def test_labels_different_ones_pass() -> None:
    refuse_duplicates([make_label("cat", ["CAT", "kitty"]), make_label("cats"), make_label("猫"), make_label("c-at")])


# ------------------------------------------------------------------------------------------- files

TWO = [Label("hot_dog", ("hot dog", "frankfurter"), ()), Label("cat", ("cat",), ("a cat!", "my cat"))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.csv", "label,synonyms,prompts\nhot_dog,frankfurter,\ncat,,a cat!|my cat\n"),
        ("l.csv", "prompts, LABEL ,note,Synonyms\n,hot_dog,x,frankfurter\na cat!|my cat,cat\n"),
        ("l.json", '[{"label":"hot_dog","synonyms":["frankfurter"]},{"label":"cat","prompts":["a cat!","my cat"]}]'),
        ("l.json", '{"hot_dog": "frankfurter", "cat": {"prompts": ["a cat!", "my cat"]}}'),
        ("l.yaml", "hot_dog: [frankfurter]\ncat: {prompts: [a cat!, my cat]}\n"),
        ("l.yml", "labels:\n- {label: hot_dog, synonyms: frankfurter}\n- label: cat\n  prompts: [a cat!, my cat]\n"),
        ("L.YAML", "labels:\n  hot_dog: {synonyms: [frankfurter]}\n  cat:\n    prompts: [a cat!, my cat]\n"),
    ],
)
def test_labels_file_gives_synonyms_and_prompts(tmp_path: Path, name: str, content: str) -> None:
    assert read_labels(write(tmp_path, name, content)) == TWO


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", "cat\n\n  hot_dog  \r\ncrane, bird"),
        ("labels", "cat\nhot_dog\ncrane, bird\n"),
        ("l.csv", 'cat\nhot_dog\n"crane, bird"\n'),
        ("l.csv", 'label\r\ncat\r\n\r\nhot_dog\r\n"crane, bird"\r\n'),
        ("l.csv", 'id,label\n1,cat\n2,hot_dog\n3,"crane, bird"\n'),
        ("l.json", '["cat", "hot_dog", "crane, bird"]'),
        ("l.json", '{"labels": ["cat", "hot_dog", "crane, bird"]}'),
        ("l.yaml", "- cat\n- hot_dog\n- crane, bird\n"),
        ("l.yaml", "cat:\nhot_dog:\ncrane, bird:\n"),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_labels_file_of_names_alone(tmp_path: Path, name: str, content: str, mark: bytes) -> None:
    assert names(read_labels(write(tmp_path, name, mark + content.encode()))) == ["cat", "hot_dog", "crane, bird"]


@pytest.mark.parametrize(
    ("name", "content", "source"),
    [
        ("data.yaml", "path: ../pets\ntrain: images\nnc: 3\nnames: [cat, dog, truck]\n", "the key 'names'"),
        ("data.yaml", "names:\n  0: cat\n  2: truck\n  1: dog\n", "the key 'names'"),
        ("classes.json", '{"classes": ["cat", "dog", "truck"]}', "the key 'classes'"),
        ("config.json", '{"id2label": {"0": "cat", "1": "dog", "2": "truck"}, "a": "vit"}', "the key 'id2label'"),
        ("config.json", '{"label2id": {"dog": 1, "cat": 0, "truck": 2}, "a": 1}', "the key 'label2id'"),
        ("id2label.json", '{"0": "cat", "1": "dog", "10": "truck"}', "a list of numbers and names"),
        ("label2id.json", '{"truck": 2, "cat": 0, "dog": 1}', "a list of numbers and names"),
        ("index.json", '{"0": ["n1", "x"], "1": ["n2", "y"]}', None),
        ("i.json", '{"0": ["n02123045", "cat"], "1": ["n02084071", "dog"], "2": ["n04490091", "truck"]}', "a list of"),
        ("coco.json", '{"images": [], "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, '
         '{"id": 3, "name": "truck"}]}', "the key 'categories'"),
        ("names.json", '[{"name": "cat"}, {"name": "dog"}, {"name": "truck"}]', "a list of numbers and names"),
        ("l.jsonl", '{"label": "cat"}\n{"label": "dog"}\n"truck"\n', ""),
        ("l.tsv", "label\tsynonyms\ncat\t\ndog\t\ntruck\t\n", ""),
        ("l.csv", "label;synonyms\ncat;\ndog;\ntruck;\n", "the column 'label'"),
        ("l.csv", "name\ncat\ndog\ntruck\n", "the column 'name'"),
        ("l.csv", "id,class_name\n0,cat\n1,dog\n2,truck\n", "the column 'class_name'"),
        ("l.txt", '"cat",\n"dog",\n"truck"\n', "lines in quotes"),
        ("l.txt", "cat,\ndog,\ntruck\n", "lines that end in a comma"),
        ("l.txt", "# animals\ncat\ndog\n\n# vehicles\ntruck\n", "the lines that don't begin with #, 2 do"),
        ("l.txt", "0 cat\n1 dog\n2 truck\n", "numbered lines"),
        ("coco.names", "1: cat\n2: dog\n3: truck\n", "numbered lines"),
    ],
)  # fmt: skip
def test_labels_of_other_programs_are_read_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: str, source: str | None
) -> None:
    caplog.set_level("INFO", "clipcls")
    found = read_labels(write(tmp_path, name, content))
    if source is None:
        assert [label.texts for label in found] == [("n1", "x"), ("n2", "y")]
        return
    assert [label.texts for label in found] == [("cat",), ("dog",), ("truck",)]
    assert [f"labels: 3 names from {source}" in line for line in caplog.messages] == [True] * bool(source)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", "cat, dog, truck\n", "one line with commas; write one label a line"),
        ("l.csv", "cat;kitty\ndog;puppy\n", "every line holds a semicolon; columns end in commas"),
        ("l.csv", "cat\tkitty\ndog\tpuppy\n", "every line holds a tab"),
        ("l.csv", 'label,note\ncat,"furry\ndog,x\n', 'line 2: a quote \\("\\) opens in this row and never closes'),
        ("l.csv", "label\ncat\ndog,puppy\n", "'dog': a row with more cells"),
        ("l.xlsx", "PK", "labels come from .txt, .csv, .tsv, .json, .jsonl or .yaml files, not from .xlsx"),
    ],
)  # fmt: skip
def test_labels_in_no_form_that_is_known_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    file = write(tmp_path, name, content)
    with pytest.raises(UsageError, match=message):
        read_labels(file)


def test_labels_that_count_are_kept_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counted = ["0 people", "1 person", "2 people"]
    assert names(read_labels(write(tmp_path, "l.txt", "\n".join(counted)))) == counted
    assert "begin with numbers, which are part of them" in caplog.text


@pytest.mark.parametrize("content", ["cat,dog,truck\n", "cat,1\ndog,2\n"])
def test_labels_csv_of_several_columns_needs_to_say_which(tmp_path: Path, content: str) -> None:
    with pytest.raises(UsageError, match="several columns"):
        read_labels(write(tmp_path, "l.csv", content))


@pytest.mark.parametrize("value", ["no", "yes", "on", "off", "true", "False"])
@pytest.mark.parametrize("form", ["- {}\n- cat\n", "{}: x\ncat: y\n", "- label: {}\n"])
def test_labels_yaml_boolean_is_refused_and_quotes_advised(tmp_path: Path, value: str, form: str) -> None:
    with pytest.raises(UsageError, match="quotes"):
        read_labels(write(tmp_path, "l.yaml", form.format(value)))
    assert names(read_labels(write(tmp_path, "l.yaml", form.format(f'"{value}"'))))[0] == value


@pytest.mark.parametrize("value", ["7", "012", "1_000", "1:30", "1.50", "0x1F", "2024-01-02", "2024-99-99"])
def test_labels_yaml_number_or_date_is_shown_as_written(tmp_path: Path, value: str) -> None:
    assert names(read_labels(write(tmp_path, "l.yaml", f"- {value}\n"))) == [value]
    assert names(read_labels(write(tmp_path, "l.yaml", f"{value}: sign\n"))) == [value]


@pytest.mark.parametrize(
    ("name", "content"),
    [("l.yaml", "cat: kitty\ndog: hound\ncat: feline\n"), ("l.json", '{"cat": "kitty", "cat": "feline"}')],
)
def test_labels_repeated_key_is_refused(tmp_path: Path, name: str, content: str) -> None:
    with pytest.raises(UsageError, match="cat"):
        read_labels(write(tmp_path, name, content))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", ""),
        ("l.txt", "\n \n"),
        ("l.csv", ""),
        ("l.csv", "label\n"),
        ("l.csv", "label,synonyms\n,x\n"),
        ("l.json", ""),
        ("l.json", "[]"),
        ("l.json", "{"),
        ("l.json", '"cat"'),
        ("l.json", '["cat", null]'),
        ("l.json", '["cat", ["dog"]]'),
        ("l.json", "[" * 100_000),
        ("l.yaml", ""),
        ("l.yaml", "cat"),
        ("l.yaml", "labels: []"),
        ("l.yaml", "- [cat"),
        ("l.yaml", "- cat\n- ''\n"),
        ("l.yaml", "[" * 2000),
        ("l.yaml", "\0"),
        ("l.yaml", "cat: [no]"),
        ("l.yaml", "cat: {synonym: kitty}"),
        ("l.yaml", "- cat: [kitty]"),
        ("l.yaml", "- !!python/object/apply:os.getcwd []"),
        ("l.txt", b"caf\xe9\n"),
        ("l.csv", b"label\ncaf\xe9\n"),
        ("l.json", '["c"]'.encode("utf-16")),
        ("l.yaml", b"- caf\xe9\n"),
    ],
)
def test_labels_bad_file_is_named(tmp_path: Path, name: str, content: str | bytes) -> None:
    file = write(tmp_path, name, content)
    with pytest.raises(UsageError) as caught:
        read_labels(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["missing.txt", "missing.yaml", "folder"])
def test_labels_unreadable_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match=name):
        parse_labels(file=tmp_path / name)


def test_labels_duplicate_across_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'Cat' and 'cat'"):
        parse_labels("Cat,dog", file=write(tmp_path, "l.txt", "cat\n"))
