"""Load prompt templates by name, from a file or from a model's folder, and render a label's prompts."""

import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from string import Formatter
from types import ModuleType

import yaml

from clipcls.errors import UsageError, shortened
from clipcls.records import Label, PromptSet
from clipcls.text_files import read_text

PLACEHOLDERS = ("", "c", "label")
# in a model folder: the templates that the model was trained with
MODEL_PROMPTS = "prompts.yaml"
# the name of that set
OWN = "own"
_CJK = re.compile("[\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_OPEN_CLIP_SETS = {
    "openai-imagenet-80": (
        "OPENAI_IMAGENET_TEMPLATES",
        "The 80 templates of OpenAI's ImageNet evaluation, from open_clip.",
    ),
    "openai-imagenet-7": ("SIMPLE_IMAGENET_TEMPLATES", "OpenAI's best 7 of the 80, from open_clip."),
}


def load_prompt_set(name_or_file: str) -> PromptSet:
    """Load a built-in set by name, or a .yaml, .yml or .txt file of templates.

    Raises:
        UsageError: no such set or file, or a template that can't be used.
    """
    if name_or_file in _OPEN_CLIP_SETS:
        return _from_open_clip(name_or_file)
    if name_or_file in builtin_names():
        return _from_file(_builtin_folder() / f"{name_or_file}.yaml")
    path = Path(name_or_file)
    if path.suffix.lower() not in (".yaml", ".yml", ".txt") and not os.path.isfile(path):  # noqa: PTH113, long names
        raise UsageError(
            f"No prompt set or file {name_or_file!r}. Built in: {', '.join(builtin_names())}. "
            "A file ends in .yaml or .txt; one template can be given with --template."
        )
    return _from_file(path)


def templates_set(templates: Sequence[str], name: str = "templates") -> PromptSet:
    """Make a prompt set of the caller's own templates.

    Raises:
        UsageError: no template, or one without a placeholder or with an unknown one.
    """
    if isinstance(templates, str) or not isinstance(templates, Sequence):
        raise UsageError(f"expected a list of templates, got {templates!r}.")
    if not templates:
        raise UsageError("A prompt set needs at least one template.")
    for template in templates:
        _check(template)
    return PromptSet(name=name, templates=tuple(templates))


def builtin_names() -> list[str]:
    """List the built-in prompt sets' names, sorted."""
    return sorted([*_OPEN_CLIP_SETS, *(path.stem for path in _builtin_folder().glob("*.yaml"))])


def render(label: Label, prompt_set: PromptSet) -> tuple[str, ...]:
    """Return a label's own prompts; without any, every template filled with its name and each synonym."""
    if label.prompts:
        return label.prompts
    templates_for = _templates_for(prompt_set)
    return tuple(_fill(template, text) for text in label.texts for template in templates_for(text))


def render_first(texts: Iterable[str], prompt_set: PromptSet) -> list[str]:
    """Return the first template, of those for its script, filled with each text."""
    templates_for = _templates_for(prompt_set)
    return [_fill(templates_for(text)[0], text) for text in texts]


def _templates_for(prompt_set: PromptSet) -> Callable[[str], Sequence[str]]:
    return ByScript(prompt_set.templates).fitting if prompt_set.by_script else lambda text: prompt_set.templates


class ByScript:
    """Templates by the script that they are for: those with Chinese or Japanese signs, and all others."""

    def __init__(self, templates: Sequence[str]) -> None:
        bare = [template for template in templates if template == "{}"]
        self._chinese = [template for template in templates if _CJK.search(template)] + bare or ["{}"]
        self._other = [template for template in templates if not _CJK.search(template)] or ["{}"]

    def fitting(self, text: str) -> Sequence[str]:
        """Return the templates for a text; `{}` is for both scripts."""
        return self._chinese if _CJK.search(text) else self._other


def zero_shot_metadata_file() -> Path:
    """Return the file in which open_clip keeps its templates and ImageNet's classes; open_clip isn't imported.

    Raises:
        UsageError: open_clip isn't installed.
    """
    package = importlib.util.find_spec("open_clip")
    if package is None or not package.submodule_search_locations:
        raise UsageError("open_clip isn't installed: pip install open_clip_torch")
    return Path(package.submodule_search_locations[0]) / "zero_shot_metadata.py"


def template_of_caption(phrasing: str) -> str:
    """Return the template that gives what `phrasing.replace("{}", label)` gives: other braces are text there."""
    return "{}".join(part.replace("{", "{{").replace("}", "}}") for part in phrasing.split("{}"))


def write_model_prompts(folder: Path, templates: Sequence[str]) -> None:
    """Write the templates that a model was trained with into its folder."""
    text = yaml.safe_dump({"templates": list(templates)}, allow_unicode=True, width=1000)
    (folder / MODEL_PROMPTS).write_text(text, encoding="utf-8")


def read_model_prompts(folder: Path | None) -> PromptSet | None:
    """Read the templates that a model was trained with.

    Args:
        folder: the model's; None for a model without one.

    Returns:
        None if the model doesn't state them.

    Raises:
        UsageError: the file can't be used.
    """
    path = None if folder is None else folder / MODEL_PROMPTS
    return None if path is None or not path.is_file() else replace(_from_file(path), name=OWN, by_script=True)


def _fill(template: str, text: str) -> str:
    # a template may say {} more than once
    return template.format(*[text] * template.count("{"), c=text, label=text)


def _check(template: object) -> None:
    if not isinstance(template, str):
        raise UsageError(f"Template {shortened(repr(template))} is not text. Put it in quotes.")
    shown = repr(shortened(template))
    try:
        fields = list(_placeholders(template))
    except ValueError as exc:
        raise UsageError(f"Template {shown}: {exc}. Write a literal brace twice: {{{{ or }}}}.") from exc
    if not fields:
        raise UsageError(f"Template {shown} has no placeholder, so every label would get the same prompt. Add {{}}.")
    for field in fields:
        if field not in PLACEHOLDERS:
            raise UsageError(
                f"Template {shown}: unknown placeholder {{{shortened(field)}}}. Use {{}}, {{c}} or {{label}}."
            )


def _placeholders(template: str) -> Iterator[str]:
    for _, field, spec, conversion in Formatter().parse(template):
        if field is not None:
            yield field + (f"!{conversion}" if conversion else "") + (f":{spec}" if spec else "")


def _from_file(path: Path) -> PromptSet:
    text = read_text(path)
    try:
        data = text.split("\n") if path.suffix.lower() == ".txt" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as exc:
        raise UsageError(f"{path}: can't read prompts: {exc}") from exc
    details = data if isinstance(data, dict) else {"templates": data}
    templates = details.get("templates")
    if not isinstance(templates, list):
        raise UsageError(f"{path}: expected a list of templates, or a mapping with `templates`.")
    try:
        checked = templates_set(
            [line for line in templates if not isinstance(line, str) or line.strip()], name=path.stem
        )
    except UsageError as exc:
        raise UsageError(f"{path}: {exc}") from exc
    return PromptSet(checked.name, checked.templates, str(details.get("description") or "").strip())


def _from_open_clip(name: str) -> PromptSet:
    attribute, description = _OPEN_CLIP_SETS[name]
    functions = getattr(_zero_shot_metadata(), attribute)
    return PromptSet(name, tuple(function("{}") for function in functions), description)


@cache
def _zero_shot_metadata() -> ModuleType:
    """Load open_clip's template lists by path: importing open_clip would import torch."""
    spec = importlib.util.spec_from_file_location("clipcls._zero_shot_metadata", zero_shot_metadata_file())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def _builtin_folder() -> Path:
    """Return the folder of `clipcls.prompt_sets` if installed, otherwise `prompts/` of the checkout."""
    spec = importlib.util.find_spec("clipcls.prompt_sets")
    if spec is not None and spec.submodule_search_locations:
        return Path(spec.submodule_search_locations[0])
    return Path(__file__).parents[2] / "prompts"
