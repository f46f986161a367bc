"""`clipcls models`: what there is to choose from, and `models pull`."""

from typing import Annotated

import typer

from clipcls.cli import options

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
    from clipcls.models.catalog import CATALOG, DEFAULT_MODEL

    for entry in CATALOG:
        default = " (default)" if entry.alias == DEFAULT_MODEL else ""
        accuracy = f"{entry.imagenet:.1f} % on ImageNet ({entry.source})" if entry.imagenet else ""
        needs = f"needs the extra {entry.extra}: transformers, sentencepiece" if entry.extra else ""
        size = f"{entry.parameters:g} million parameters"
        model = entry.model if ":" in entry.model else "embedded"
        typer.echo(f"{entry.alias}{default}: {entry.purpose}")
        facts = (model, size, entry.speed, entry.licence, accuracy, needs)
        typer.echo(f"    {'; '.join(fact for fact in facts if fact)}")
    typer.echo("ImageNet figures are published zero-shot top-1 accuracies, not measured by clipcls.", err=True)


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
