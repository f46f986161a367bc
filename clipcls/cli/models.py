"""`clipcls models`: what there is to choose from, and `models pull`."""

import shutil
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from clipcls.cli import options
from clipcls.models.catalog import DEFAULT_MODEL

if TYPE_CHECKING:
    from clipcls.models.catalog import CatalogEntry

models_app = typer.Typer(invoke_without_command=True, no_args_is_help=False)


@models_app.callback(invoke_without_command=True)
def models(
    context: typer.Context,
    all_models: Annotated[bool, typer.Option("--all", help="Every NAME:TAG of open_clip, one per line.")] = False,
) -> None:
    """List models under short names; `pull` downloads one ahead."""
    if context.invoked_subcommand is not None:
        return
    if all_models:
        from clipcls.models.locate import pretrained_names

        for name in pretrained_names():
            typer.echo(name)
        return
    from clipcls.models.catalog import CATALOG

    for entry in CATALOG:
        _show(entry)
    typer.echo("ImageNet figures are published zero-shot accuracies, not measured by clipcls.", err=True)


def _show(entry: "CatalogEntry") -> None:
    """Print what there is to know of a model, as wide as a terminal is."""
    import textwrap

    default = " (default)" if entry.alias == DEFAULT_MODEL else ""
    facts = (
        entry.model if entry.repo else "embedded",
        f"{entry.parameters:g} million parameters",
        entry.speed,
        _presence(entry),
        entry.licence,
        f"{entry.imagenet:.1f} % on ImageNet ({entry.source})" if entry.imagenet else "",
        f"needs the extra {entry.extra}: transformers, sentencepiece" if entry.extra else "",
    )
    shown = sys.stdout is not None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if shown else sys.maxsize
    wrap = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    typer.echo(wrap.fill(f"{entry.alias}{default}: {entry.purpose}"))
    wrap.initial_indent = wrap.subsequent_indent = "    "
    typer.echo(wrap.fill("; ".join(fact for fact in facts if fact)))


def _presence(entry: "CatalogEntry") -> str:
    """Say how large a model's download is, and whether it is there."""
    from clipcls.models import hub
    from clipcls.models.catalog import TOKENIZER_CONFIG, WEIGHT_NAMES

    if not entry.repo:
        return ""
    has_tokenizer = not entry.tokenizer_repo or hub.cached(entry.tokenizer_repo, [TOKENIZER_CONFIG])
    there = hub.cached(entry.repo, WEIGHT_NAMES) and has_tokenizer
    return f"{entry.gigabytes:.1f} GB, {'downloaded' if there else 'not downloaded'}"


@models_app.command()
def pull(
    name: Annotated[
        str, typer.Argument(help="Alias, NAME:TAG or hf-hub:ORG/REPO.", autocompletion=options.complete_model)
    ],
    verbose: options.VerboseOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Download a model ahead, or a newer copy of it; prints where its weights are."""
    options.set_up_logging(verbose, quiet)
    from clipcls.models.locate import locate
    from clipcls.records import ModelSpec

    typer.echo(locate(ModelSpec(name), refresh=True).weights)
