"""Options of `clipcls eval` that are repeatable, to compare models and prompts."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options
from clipcls.errors import UsageError
from clipcls.models.catalog import DEFAULT_MODEL
from clipcls.records import ModelSpec

if TYPE_CHECKING:
    from clipcls.records import PromptSet

PromptsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--prompts",
        metavar="PROMPTS",
        help="Prompt set, by name or file; repeatable, to compare. [default: the data's own, else the model's, "
        "else default]",
        autocompletion=options.complete_prompts,
    ),
]
TemplateOption = Annotated[
    list[str] | None,
    typer.Option("--template", metavar="TEMPLATE", help="Template; all that are given are one more prompt set."),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="As for predict; repeatable, to compare. [env var: CLIPCLS_MODEL; default: photo]",
        autocompletion=options.complete_model,
    ),
]
PrecisionOption = Annotated[
    list[str] | None,
    typer.Option(
        "--precision",
        metavar="PRECISION",
        envvar="CLIPCLS_PRECISION",
        help="As for predict; repeatable, to compare. [default: auto]",
    ),
]


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """The options for prompt sets."""

    prompts: PromptsOption = None
    template: TemplateOption = None
    strict_prompts: options.StrictPromptsOption = False

    def sets(self, file: str | None = None) -> "list[tuple[list[str], PromptSet | None]]":
        """Return the prompt sets, each with the options that stand for it; None, without options, for none.

        Args:
            file: to use where no options are given.

        Raises:
            UsageError: a set can't be used.
        """
        from clipcls.labels.prompts import load_prompt_set, templates_set

        sets: list[tuple[list[str], PromptSet | None]]
        sets = [(["--prompts", name], load_prompt_set(name)) for name in dict.fromkeys(self.prompts or ())]
        if self.template:
            given = [part for template in self.template for part in ("--template", template)]
            sets.append((given, templates_set(self.template)))
        if not sets and file is not None:
            sets.append((["--prompts", file], load_prompt_set(file)))
        return sets or [([], None)]


@dataclass(frozen=True, slots=True)
class ComparedModelOptions:
    """The options for models, each in each precision."""

    model: ModelOption = None
    arch: options.ArchOption = None
    preprocess: options.PreprocessOption = None
    device: options.DeviceOption = "auto"
    precision: PrecisionOption = None
    runtime: options.RuntimeOption = "auto"

    def specs(self, made_by: str | None = None) -> tuple[ModelSpec, ...]:
        """Return the models that the options name.

        Args:
            made_by: the model that stands for none; None for the usual default.

        Raises:
            UsageError: options for one weights file are given with several models.
        """
        # not typer's own, which would take a path with a space for two
        names = list(dict.fromkeys(self.model or [made_by or os.environ.get("CLIPCLS_MODEL") or DEFAULT_MODEL]))
        if len(names) > 1 and (self.arch or self.preprocess):
            raise UsageError("--arch and --preprocess say what one weights file is; evaluate it by itself.")
        return tuple(
            ModelSpec(name, self.arch, self.preprocess, self.device, precision, self.runtime)
            for name in names
            for precision in dict.fromkeys(self.precision or ["auto"])
        )


def arguments_of(spec: ModelSpec) -> Sequence[str]:
    """Return the options that stand for a model and its precision."""
    return ["--model", spec.name, *([] if spec.precision == "auto" else ["--precision", spec.precision])]
