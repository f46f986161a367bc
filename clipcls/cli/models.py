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
@options.grouped
def prepare(
    *,
    name: Annotated[
        str,
        typer.Argument(
            help="Alias, NAME:TAG, hf-hub:ORG/REPO, a model folder, or a weights file.",
            autocompletion=options.complete_model,
        ),
    ] = DEFAULT_MODEL,
    arch: options.ArchOption = None,
    preprocess: options.PreprocessOption = None,
    precision: options.PrecisionOption = "auto",
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images", metavar="INPUT", help="For int8: pictures like those of the job, some 300; repeatable."
        ),
    ] = None,
    cache_dir: options.CacheDirOption = None,
    cache_size: options.CacheSizeOption = None,
    verbosity: options.VerbosityOptions,
) -> None:
    """Convert a model for OpenVINO ahead of the first run; prints what computes each tower.

    Example: clipcls models prepare photo --precision int8 --images pictures/
    """
    verbosity.set_up_logging()
    from clipcls.embed.prepare import convert_ahead, quantise_ahead
    from clipcls.embed.session import Session
    from clipcls.errors import UsageError
    from clipcls.inputs.discover import discover
    from clipcls.records import ModelSpec

    if precision == "int8" and not images:
        raise UsageError("--precision int8 is calibrated on pictures: give --images FOLDER.")
    if images and precision != "int8":
        raise UsageError("--images are what --precision int8 is calibrated on; other precisions need none.")
    spec = ModelSpec(name, arch, preprocess, "cpu", precision, "openvino")
    how = options.RunOptions(cache_dir=cache_dir, cache_size=cache_size)
    with Session(spec, how.execution(options.LimitOptions(), strict_prompts=False)) as session:
        quantise_ahead(session, lambda: discover(images or ()), anew=True)
        for tower, computed in convert_ahead(session).items():
            typer.echo(f"{tower}\t{computed}")


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
