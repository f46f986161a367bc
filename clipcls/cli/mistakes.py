"""Say what was meant where the command line can't be understood: options given twice, choices, commands, labels."""

import os
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand

from clipcls.errors import ClipclsError, HubUnreachableError, UsageError

_NOT_A_CHOICE = re.compile(r"'(?P<value>.*)' is not one of (?P<choices>'.*')\.?", re.DOTALL)
# pydantic's names of what a value isn't
_KINDS = {"int": "a whole number", "float": "a number"}
_LIMITS = {"greater_than_equal": "{ge} or more", "greater_than": "more than {gt}", "less_than_equal": "{le} or less"}


class OnceCommand(TyperCommand):
    """A command that refuses a second value for an option that holds one, instead of dropping the first."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments; see `TyperCommand`."""
        order: list[Any] = self.make_parser(ctx).parse_args(args=list(args))[2]
        for option, count in Counter(order).items():
            if count > 1 and option.param_type_name == "option" and not (option.multiple or option.is_flag):
                raise typer.BadParameter("it holds one value, and is given twice", ctx=ctx, param=option)
        found: list[str] = super().parse_args(ctx, args)
        return found


def explain(exc: Any, arguments: Sequence[str]) -> None:
    """Put an error of typer, or of what it stands on, into words that say what to do.

    Args:
        exc: a ClickException, whose message is changed.
        arguments: those of the command line.
    """
    command = re.match(r"No such command '(.*)'\.?", exc.message)
    if command is not None and _names_input(command[1], arguments):
        exc.message = f"No such command {command[1]!r}. Did you mean: clipcls predict {shlex.join(arguments)}"
        return
    choice = _NOT_A_CHOICE.search(exc.message)
    if choice is not None:
        *most, last = re.findall(r"'([^']*)'", choice["choices"])
        exc.message = f"{choice['value']!r}: use {', '.join(most)} or {last}."
        return
    errors = getattr(exc.__cause__, "errors", None)
    for error in errors(include_url=False)[:1] if callable(errors) else ():
        kind, value = error["type"], error["input"]
        if kind in _LIMITS:
            exc.message = f"{value!r}: expected {_LIMITS[kind].format(**error['ctx'])}."
        elif kind.partition("_")[0] in _KINDS:
            exc.message = f"{value!r}: expected {_KINDS[kind.partition('_')[0]]}."


def offline_command(error: ClipclsError, arguments: Sequence[str]) -> str:
    """Return what to add to an error where `predict` could go on with an embedded model: the command that does.

    Args:
        error: what stopped the command.
        arguments: those of the command line.
    """
    if not isinstance(error, HubUnreachableError) or arguments[:1] != ["predict"]:
        return ""
    kept = list(arguments)
    for option in [argument for argument in arguments if argument == "--model" or argument.startswith("--model=")]:
        place = kept.index(option)
        del kept[place : place + (2 if option == "--model" else 1)]
    place = kept.index("--") if "--" in kept else len(kept)
    return f"\nTo go on now: clipcls {shlex.join([*kept[:place], '--model', 'everyday', *kept[place:]])}"


def _names_input(name: str, arguments: Sequence[str]) -> bool:
    """Tell whether what was taken for a command is an input of `predict`, whose name was left out."""
    has_labels = any(argument.split("=")[0] in ("--labels", "--label", "--labels-file") for argument in arguments)
    return has_labels or os.path.exists(name)  # noqa: PTH110


def refuse_split_labels(inputs: Sequence[str], labels: Sequence[str]) -> None:
    """Refuse inputs that look like further labels: words that are no files, beside inputs that are.

    Raises:
        UsageError: there are such.
    """
    missing = [name for name in inputs if not os.path.exists(name)]  # noqa: PTH110
    words = [name for name in missing if re.fullmatch(r"[^\W\d_]+", name)]
    if labels and words and len(missing) < len(inputs):
        meant = shlex.quote(",".join([*labels, *words]))
        raise UsageError(
            f"{' and '.join(words)}: no such file or folder. Labels are separated by commas: --labels {meant}?"
        )
