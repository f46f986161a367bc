"""`clipcls prompts list|show`."""

from typing import Annotated

import typer

prompts_app = typer.Typer(no_args_is_help=True, help="List and show prompt sets.")


@prompts_app.command("list")
def list_sets() -> None:
    """List the built-in prompt sets."""
    from clipcls.labels.prompts import builtin_names, load_prompt_set

    for name in builtin_names():
        prompt_set = load_prompt_set(name)
        count = len(prompt_set.templates)
        typer.echo(f"{name}\t{count} template{'s' if count > 1 else ''}\t{prompt_set.description}")


@prompts_app.command()
def show(name: Annotated[str, typer.Argument(help="Name of a set, or a file.")]) -> None:
    """Print the templates of a set, one per line."""
    from clipcls.labels.prompts import load_prompt_set

    for template in load_prompt_set(name).templates:
        typer.echo(template)
