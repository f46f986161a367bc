"""`clipcls cache info|clear|prune`."""

from pathlib import Path
from typing import Annotated

import typer

from clipcls.cli import options

cache_app = typer.Typer(no_args_is_help=True, help="Show the cache, clear it, and make it smaller.")


@cache_app.command("info")
def info_command(cache_dir: options.CacheDirOption = None, cache_size: options.CacheSizeOption = None) -> None:
    """Show where the cache is and what it holds."""
    from clipcls.embed.cache.prune import info
    from clipcls.embed.cache.store import DEFAULT_LIMIT, MEGABYTE

    facts = info(_folder(cache_dir))
    _show("path", facts.path)
    _show("size", _megabytes(facts.size) if facts.exists else "empty")
    _show("limit", _megabytes(cache_size * MEGABYTE if cache_size else DEFAULT_LIMIT))
    _show("label embeddings", facts.texts)
    _show("image embeddings", facts.images)
    _show("models", facts.models)
    _show("file fingerprints", facts.fingerprints)
    _show("converted towers", facts.conversions)


@cache_app.command("clear")
def clear_command(cache_dir: options.CacheDirOption = None) -> None:
    """Remove the cache."""
    from clipcls.embed.cache.prune import clear

    _show("freed", _megabytes(clear(_folder(cache_dir))))


@cache_app.command("prune")
def prune_command(
    cache_dir: options.CacheDirOption = None,
    older_than: Annotated[
        int | None,
        typer.Option(
            "--older-than",
            metavar="DAYS",
            min=0,
            help="Also remove what wasn't used for so long.",
        ),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            "--size",
            metavar="MB",
            min=0,
            envvar="CLIPCLS_CACHE_SIZE",
            help="Largest size that is left of it, in MB. [default: 2048]",
        ),
    ] = None,
) -> None:
    """Remove what is of no use any more from the cache."""
    from clipcls.embed.cache.prune import prune
    from clipcls.embed.cache.store import DEFAULT_LIMIT, MEGABYTE

    limit = DEFAULT_LIMIT if size is None else size * MEGABYTE
    removed = prune(_folder(cache_dir), older_than, limit)
    _show("label embeddings", removed.texts)
    _show("image embeddings", removed.images)
    _show("paths", removed.paths)
    _show("converted towers", removed.conversions)
    _show("damaged files", removed.damaged)
    _show("freed", _megabytes(removed.freed))


def _folder(cache_dir: Path | None) -> Path:
    from clipcls.embed.cache.database import default_folder
    from clipcls.errors import UsageError

    options.set_up_logging(verbose=False, quiet=True)
    folder = cache_dir or default_folder()
    if folder is None:
        raise UsageError("there is no cache: no home directory is known. Set HOME or XDG_CACHE_HOME, or --cache-dir.")
    return folder


def _show(name: str, value: object) -> None:
    typer.echo(f"{name}\t{value}")


def _megabytes(size: int) -> str:
    return f"{size / 2**20:.1f} MB"
