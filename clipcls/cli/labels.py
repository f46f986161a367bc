"""`clipcls labels list|show`."""

import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options

if TYPE_CHECKING:
    from clipcls.labels.label_sets import LabelSet

labels_app = typer.Typer(no_args_is_help=True, help="List and show label sets, to start from without labels.")


@labels_app.command("list")
def list_sets() -> None:
    """List the built-in label sets."""
    from clipcls.labels.label_sets import builtin_names, load_label_set

    sets = [load_label_set(name) for name in builtin_names()]
    if sys.stdout is not None and sys.stdout.isatty():
        _show_table(sets)
        return
    for label_set in sets:
        count = len(label_set.labels)
        typer.echo(f"{label_set.name}\t{count} labels\t{label_set.description}\t{label_set.source}")


def _show_table(sets: "list[LabelSet]") -> None:
    """Print name, number, and what it is, as wide as the terminal; the source stands below."""
    import textwrap

    width = max(len(label_set.name) for label_set in sets)
    wrap = textwrap.TextWrapper(shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False)
    wrap.subsequent_indent = " " * (width + 8)
    for label_set in sets:
        wrap.initial_indent = f"{label_set.name:{width}}  {len(label_set.labels):4}  "
        typer.echo(wrap.fill(label_set.description))
        wrap.initial_indent = wrap.subsequent_indent
        typer.echo(wrap.fill(label_set.source))


@labels_app.command()
def show(
    name: Annotated[
        str, typer.Argument(help="Name of a set, or a label file.", autocompletion=options.complete_labels)
    ],
) -> None:
    """Print the labels of a set, one per line."""
    from clipcls.labels.label_files import read_labels

    for label in read_labels(name):
        typer.echo(label.name)
