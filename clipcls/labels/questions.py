"""Read questions about pictures, each with its choices, from a YAML file or from options."""

import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from clipcls.errors import UsageError, listed, shortened
from clipcls.labels.label_files import LabelLoader, labels_from_data, make_label, read_labels, refuse_duplicates
from clipcls.labels.prompts import load_prompt_set, templates_set
from clipcls.records import Label, PromptSet

_KEYS = ("question", "labels", "choices", "statements", "templates", "multi", "threshold", "when")
#: Names of other fields of a row.
RESERVED = ("path", "error", "path_b64", "index", "label", "score", "similarity", "top", "known", "explain")

# how questions become statements with a place for the choice; "question + choice" is a text that no caption is like
_STATEMENTS = (
    (r"(?:what|which) (?:\w+ )?colou?r (is|are) ((?:the|this|that|these|those|his|her) .+)", r"\2 \1 {}"),
    (r"(?:what|which) (?:kind|sort|type|breed|species|make|brand) of (.+) (?:is|are) .+", r"a photo of a {}, a \1"),
    (r"(?:what|which) .+ (is|are) (?:this|that|it|these|those|shown|there)(?: .+)?", r"a photo of a {}"),
    (r"where (is|are) (.+)", r"\2 \1 {}"),
    (r"what (is|are) (.+) doing", r"\2 \1 {}"),
    (r"what (is|are) (.+ing)", r"{} \1 \2"),
    (r"how (is|are) (.+)", r"\2 \1 {}"),
    (r"who (is|are) (.+)", r"{} \1 \2"),
)
# what models of this kind can't tell, and where that was measured
_WEAK = (
    (r"\b(?:no|not|without|never|nothing|nobody|isn't|aren't|doesn't|don't)\b", "negation", "arXiv:2501.09425"),
    (r"\bhow many\b|\bnumber of\b|\bcount\b", "counting", "arXiv:2302.12066"),
    (r"\b(?:left|right|above|below|behind|in front of|beneath|next to)\b", "positions", "arXiv:2204.03162"),
)
_NUMBERS = frozenset(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"])


@dataclass(frozen=True, slots=True)
class Question:
    """A question about each picture.

    Attributes:
        name: the name of its field in rows.
        labels: what may be answered.
        prompts: what labels are filled into; None for the model's own.
        multi: whether several labels may be right.
        threshold: an answer with a lower score is unknown; None for none, or with `multi` the kind's default.
        when: names of questions before it, with the answers that it is asked after; of those of several questions
            each must be one.
        text: as it was asked; empty where only a name is given.
    """

    name: str
    labels: tuple[Label, ...]
    prompts: PromptSet | None = None
    multi: bool = False
    threshold: float | None = None
    when: tuple[tuple[str, tuple[str, ...]], ...] = ()
    text: str = ""


def make_question(text: str, choices: Sequence[str]) -> Question:
    """Make the question of one text.

    Raises:
        UsageError: there is no choice, or two are equal.
    """
    made = Question("answer", _choices([make_label(choice) for choice in choices]), text=text)
    return replace(made, prompts=_statements(text))


def read_questions(path: Path) -> tuple[Question, ...]:
    """Read a YAML file: a mapping from names of questions to their choices, or to mappings of details.

    Raises:
        UsageError: it can't be read, or isn't such a file; the message names the line.
    """
    from clipcls.text_files import read_text

    text = read_text(path)
    try:
        with contextlib.closing(_Document(text, path)) as document:
            return tuple(document.questions())
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        raise UsageError(f"{path}, line {line}: not valid YAML: {exc.problem}.") from exc
    except (yaml.YAMLError, RecursionError) as exc:
        raise UsageError(f"{path}: not valid YAML: {' '.join(str(exc).split())}") from exc


class _Document:
    """The nodes of a file of questions, whose lines messages name."""

    def __init__(self, text: str, path: Path) -> None:
        self._loader = LabelLoader(text)
        self._path = path

    def close(self) -> None:
        self._loader.dispose()

    def questions(self) -> Iterator[Question]:
        root = self._loader.get_single_node()
        if not isinstance(root, yaml.MappingNode) or not root.value:
            raise UsageError(f"{self._path}: expected questions, as in `colour: [red, blue]`.")
        before: dict[str, Question] = {}
        for key, value in root.value:
            line = key.start_mark.line + 1
            name = str(self._data(key))
            if name in before:
                raise self._error(line, name, "it is there twice")
            try:
                question = self._question(name, value, before)
            except UsageError as exc:
                if exc.args and str(exc).startswith(str(self._path)):
                    raise
                raise self._error(line, name, str(exc).rstrip(".")) from exc
            before[name] = question
            yield question

    def _question(self, name: str, node: yaml.Node, before: dict[str, Question]) -> Question:
        check_name(name)
        lines = {} if not isinstance(node, yaml.MappingNode) else {str(self._data(k)): k for k, _ in node.value}
        data = self._data(node)
        if not isinstance(data, dict) or not data.keys() & set(_KEYS):
            return Question(name, _choices(_labels(data)))
        strange = next((key for key in data if key not in _KEYS), None)
        if strange is not None:
            line = lines[str(strange)].start_mark.line + 1
            raise self._error(line, name, f"unknown key {strange!r}; known are {', '.join(_KEYS)}")
        given = [key for key in ("labels", "choices", "statements") if data.get(key) is not None]
        if len(given) != 1:
            raise UsageError("give its answers once, as `labels`, `choices` or `statements`")
        key = given[0]
        text = str(data.get("question") or "")
        made = Question(
            name,
            _choices(_of_statements(data[key]) if key == "statements" else _labels(data[key])),
            _templates(data.get("templates")) or (_statements(text) if text and key != "statements" else None),
            _flag(data.get("multi", False)),
            _number(data.get("threshold")),
            text=text,
        )
        if data.get("when") is None:
            return made
        try:
            return replace(made, when=tuple(_conditions(data["when"], before)))
        except UsageError as exc:
            raise self._error(lines["when"].start_mark.line + 1, name, str(exc).rstrip(".")) from exc

    def _data(self, node: yaml.Node) -> Any:
        return self._loader.construct_object(node, deep=True)

    def _error(self, line: int, name: str, message: str) -> UsageError:
        return UsageError(f"{self._path}, line {line}: question {shortened(name)!r}: {message}.")


def check_name(name: str) -> None:
    """Refuse a name that can't be a question's.

    Raises:
        UsageError: it is a row's own, or holds signs that columns can't.
    """
    if name in RESERVED:
        raise UsageError(f"rows have a field {name!r} of their own; choose another name")
    if not name.strip() or "." in name or any(sign in name for sign in "\t\r\n"):
        raise UsageError("a name of one line without dots is needed, since columns are called NAME.label")


def _labels(data: Any) -> list[Label]:
    """Return the labels of a list, a mapping, or a set or file that a text names."""
    return read_labels(data) if isinstance(data, str) else labels_from_data(data)


def _choices(labels: Sequence[Label]) -> tuple[Label, ...]:
    if len(labels) < 2:
        raise UsageError("two choices or more are needed" if labels else "no choices")
    names: dict[str, str] = {}
    for label in labels:
        if label.name in names:
            raise UsageError(f"the choice {label.name!r} is there twice")
        names[label.name] = label.name
    refuse_duplicates(label for label in labels if not label.prompts)
    return tuple(labels)


def _of_statements(data: Any) -> list[Label]:
    if not isinstance(data, dict) or not data:
        raise UsageError("statements: expected each choice with a statement, as in `open: the door is open`")
    labels = []
    for name, texts in data.items():
        listed_texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(listed_texts, list) or not all(isinstance(text, str) for text in listed_texts):
            raise UsageError(f"statements: of {name!r}: expected a text, or a list of texts")
        labels.append(make_label(str(name), prompts=listed_texts))
    return labels


def _templates(data: Any) -> PromptSet | None:
    if data is None:
        return None
    if isinstance(data, str) and "{" not in data:
        return load_prompt_set(data)
    return templates_set([data] if isinstance(data, str) else data)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"multi: expected true or false, found {value!r}")
    return value


def _number(value: Any) -> float | None:
    if value is None:
        return None
    try:
        if isinstance(value, bool) or not 0 <= float(value) <= 1:
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise UsageError(f"threshold: expected a number from 0 to 1, found {value!r}") from None


def _conditions(data: Any, before: dict[str, Question]) -> Iterator[tuple[str, tuple[str, ...]]]:
    if not isinstance(data, dict) or not data:
        raise UsageError("when: expected a question and its answer, as in `when: {animal: cat}`")
    for name, answers in data.items():
        if name not in before:
            raise UsageError(f"when: {name!r} is no question before this one; there are {listed(before) or 'none'}")
        wanted = tuple(map(str, answers if isinstance(answers, list) else [answers]))
        known = {label.name for label in before[name].labels}
        strange = next((answer for answer in wanted if answer not in known), None)
        if strange is not None or not wanted:
            raise UsageError(f"when: {strange!r} is no choice of {name!r}; there are {listed(sorted(known))}")
        yield name, wanted


# ---------------------------------------------------------------------------------------------------------
# Texts of questions


def _statements(text: str) -> PromptSet | None:
    """Return the statement that a question becomes; None where no form is known."""
    asked = text.strip().rstrip("?").strip().lower().replace("{", "{{").replace("}", "}}")
    for pattern, statement in _STATEMENTS:
        if found := re.fullmatch(pattern, asked):
            return templates_set([found.expand(statement)], name="the question's own")
    return None


def weaknesses(question: Question) -> list[tuple[str, str]]:
    """Return what a question asks for that models of this kind can't tell, and where that was measured."""
    texts: Iterable[str] = [
        question.text,
        *(question.prompts.templates if question.prompts else ()),
        *(text for label in question.labels for text in (*label.texts, *label.prompts)),
    ]
    found = [
        (what, source) for pattern, what, source in _WEAK if any(re.search(pattern, text.lower()) for text in texts)
    ]
    counts = all(label.name.lower() in _NUMBERS or label.name.isdigit() for label in question.labels)
    if counts and not any(what == "counting" for what, _ in found):
        found.append(next((what, source) for _, what, source in _WEAK if what == "counting"))
    return found
