"""`clipcls cache info|clear`."""

import typer

from clipcls.cli import options

app = typer.Typer(no_args_is_help=True, help="Show and clear the cache.")


@app.command()
def info(cache_dir: options.CacheDirOption = None) -> None:
    """Show where the cache is and what it holds."""
    from clipcls.cache import default_folder
    from clipcls.cache import info as cache_info

    facts = cache_info(cache_dir or default_folder())
    typer.echo(f"path\t{facts.path}")
    if not facts.exists:
        typer.echo("empty")
        return
    typer.echo(f"size\t{facts.size / 1e6:.1f} MB")
    typer.echo(f"label embeddings\t{facts.texts}")
    typer.echo(f"file fingerprints\t{facts.fingerprints}")


@app.command()
def clear(cache_dir: options.CacheDirOption = None) -> None:
    """Remove the cache."""
    from clipcls.cache import clear as clear_cache
    from clipcls.cache import default_folder

    freed = clear_cache(cache_dir or default_folder())
    typer.echo(f"{freed / 1e6:.1f} MB freed")
