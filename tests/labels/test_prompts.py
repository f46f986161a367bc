"""Templates: placeholders, files, names, and what they make of a label."""

from pathlib import Path

import pytest

from clipcls.errors import UsageError
from clipcls.labels.label_files import make_label
from clipcls.labels.prompts import builtin_names, load_prompt_set, render, templates_set
from clipcls.records import Label, PromptSet


def rendered(template: str, name: str = "cat") -> tuple[str, ...]:
    return render(make_label(name), templates_set([template]))


@pytest.mark.parametrize(
    ("template", "prompt"),
    [
        ("a {}", "a cat"),
        ("a {c}", "a cat"),
        ("a {label}", "a cat"),
        ("{}", "cat"),
        ("{} {c} {label}", "cat cat cat"),
        ("a {} or {}", "a cat or cat"),
        ("{{a}} {}", "{a} cat"),
        ("{:}", "cat"),
        ("一张{}的照片", "一张cat的照片"),
    ],
)
def test_render_fills_every_placeholder(template: str, prompt: str) -> None:
    assert rendered(template) == (prompt,)


@pytest.mark.parametrize("name", ["{}", "{c}", "{", "a}b", "%s", "\\1", "{0.real}"])
def test_render_takes_a_label_literally(name: str) -> None:
    assert rendered("a {}", name) == (f"a {name}",)


@pytest.mark.parametrize("template", ["", "a photo", "{{}}", "a {{c}}"])
def test_templates_set_refuses_a_template_without_placeholder(template: str) -> None:
    with pytest.raises(UsageError, match="no placeholder"):
        templates_set(["a {}", template])


@pytest.mark.parametrize(
    "template", ["{0}", "{name}", "{ }", "{c.x}", "{c[0]}", "{c!r}", "{:>9}", "{c:{c}}", "{} {0}", "{C}"]
)
def test_templates_set_refuses_other_placeholders(template: str) -> None:
    with pytest.raises(UsageError, match="unknown placeholder"):
        templates_set([template])


@pytest.mark.parametrize("template", ["{", "}", "a {c", "{} }", "{!}"])
def test_templates_set_refuses_lone_braces(template: str) -> None:
    with pytest.raises(UsageError, match="literal brace"):
        templates_set([template])


def test_templates_set_needs_a_template() -> None:
    with pytest.raises(UsageError, match="at least one"):
        templates_set([])


def test_render_goes_through_synonyms_then_templates() -> None:
    label = make_label("hot_dog", ["wiener"])
    prompts = render(label, templates_set(["a {}", "my {}"]))
    assert prompts == ("a hot dog", "my hot dog", "a wiener", "my wiener")


def test_render_prefers_a_labels_own_prompts() -> None:
    label = Label("cat", ("cat",), ("one cat", "two {cats}"))
    assert render(label, templates_set(["a {}"])) == ("one cat", "two {cats}")


# ------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.txt", "a {}\n\nthe {c}\n"),
        ("mine.txt", "a {}\r\n   \r\nthe {c}"),
        ("mine.yaml", "- a {}\n- the {c}\n"),
        ("mine.yml", "templates: ['a {}', 'the {c}']\n"),
        ("mine", "templates: ['a {}', 'the {c}']\n"),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_load_reads_a_file(tmp_path: Path, name: str, content: str, mark: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(mark + content.encode())
    assert load_prompt_set(str(file)) == PromptSet("mine", ("a {}", "the {c}"))


@pytest.mark.parametrize(("written", "read"), [("Words. ", "Words."), ("", ""), ("~", "")])
def test_load_reads_the_description(tmp_path: Path, written: str, read: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"description: {written}\ntemplates: ['a {{}}']\n")
    assert load_prompt_set(str(file)).description == read


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("mine.txt", b""),
        ("mine.txt", b"a photo\n"),
        ("mine.txt", b"caf\xe9 {}\n"),
        ("mine.yaml", b""),
        ("mine.yaml", b"a {}"),
        ("mine.yaml", b"templates: a {}"),
        ("mine.yaml", b"prompts: ['a {}']"),
        ("mine.yaml", b"- 3\n"),
        ("mine.yaml", b"- no\n"),
        ("mine.yaml", b"- 2024-99-99\n"),
        ("mine.yaml", b"- ['a {}'\n"),
        ("mine.yaml", b"- {}\n"),
        ("mine.yaml", b"[" * 2000),
    ],
)
def test_load_names_a_bad_file(tmp_path: Path, name: str, content: bytes) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_prompt_set(str(file))
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("name", ["nosuch", "nosuch.yaml", "nosuch.txt", "", ".", "../simple", "a photo of a {} " * 40])
def test_load_refuses_an_unknown_name(name: str) -> None:
    with pytest.raises(UsageError):
        load_prompt_set(name)


def test_load_lists_the_known_names() -> None:
    with pytest.raises(UsageError, match=r"chinese, default, .*simple"):
        load_prompt_set("nosuch")


def test_load_takes_a_built_in_name_before_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "default").write_text("- 'other {}'\n")
    expected = load_prompt_set("default")
    monkeypatch.chdir(tmp_path)
    assert load_prompt_set("default") == expected


# ------------------------------------------------------------------------------------------- built in


def test_builtin_names_are_sorted_and_hold_the_promised_ones() -> None:
    names = builtin_names()
    assert names == sorted(set(names))
    assert {"simple", "default", "chinese", "openai-imagenet-80", "openai-imagenet-7"} <= set(names)


@pytest.mark.parametrize("name", builtin_names())
def test_builtin_sets_load_and_are_described(name: str) -> None:
    prompt_set = load_prompt_set(name)
    assert prompt_set.name == name
    assert prompt_set.description
    prompts = render(make_label("cat"), prompt_set)
    assert len(set(prompts)) == len(prompt_set.templates)
    assert all("cat" in prompt for prompt in prompts)


@pytest.mark.parametrize(
    ("name", "attribute", "count"),
    [
        ("openai-imagenet-80", "OPENAI_IMAGENET_TEMPLATES", 80),
        ("openai-imagenet-7", "SIMPLE_IMAGENET_TEMPLATES", 7),
    ],
)
@pytest.mark.parametrize("label", ["cat", "crane, bird", "{}", "狗"])
def test_openai_sets_equal_open_clips(name: str, attribute: str, count: int, label: str) -> None:
    import open_clip

    functions = getattr(open_clip, attribute)
    assert len(functions) == count
    assert render(make_label(label), load_prompt_set(name)) == tuple(function(label) for function in functions)
