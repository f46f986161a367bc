"""`clipcls train`: train a dual encoder on pictures and captions."""

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clipcls.cli import options
from clipcls.cli.signals import StopSignals, is_first_process
from clipcls.errors import UsageError

if TYPE_CHECKING:
    from clipcls.train.loop import TrainWatch
    from clipcls.train.trainer import StepFigures
    from clipcls.train.validation import Validated

SECONDS_BETWEEN_LINES = 15
PROBLEMS_SHOWN = 10
# all other options are settings, and called like them
NOT_SETTINGS = {"config", "template", "resume", "setting", "verbose", "quiet"}


def train_command(
    context: typer.Context,
    data: Annotated[
        str | None,
        typer.Argument(
            help="Table (.csv, .tsv, .jsonl, .parquet) with image and caption columns, a folder with one for each "
            "class, or WebDataset shards (.tar).",
            show_default=False,
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings; options override it.")] = None,
    arch: Annotated[str | None, typer.Option(help="New model: open_clip's name for one, or a JSON file.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="Start from this model: what predict takes; instead of --arch.", autocompletion=options.complete_model
        ),
    ] = None,
    lock_image: Annotated[
        bool | None, typer.Option("--lock-image", help="Leave the image tower of --model as it is.", show_default=False)
    ] = None,
    lock_text: Annotated[
        bool | None, typer.Option("--lock-text", help="Leave the text tower of --model as it is.", show_default=False)
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(metavar="TEMPLATE", help='Phrasing of captions such as "a photo of a {}"; repeatable.'),
    ] = None,
    strict_data: Annotated[
        bool | None,
        typer.Option("--strict-data", help="A bad row or picture is an error, not left out.", show_default=False),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; must be new.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with the run in this folder, with its settings.")
    ] = None,
    validation: Annotated[
        str | None, typer.Option(metavar="DATA", help="Held-out table or class folders: recall, each epoch.")
    ] = None,
    zero_shot: Annotated[
        str | None, typer.Option(metavar="DIR", help="Held-out class folders: zero-shot accuracy, each epoch.")
    ] = None,
    epochs: Annotated[float | None, typer.Option(help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a step, in all processes together.")] = None,
    accumulate: Annotated[
        int | None, typer.Option(help="Parts that a batch goes through the towers in, to save memory.")
    ] = None,
    grad_checkpointing: Annotated[
        bool | None,
        typer.Option("--grad-checkpointing", help="Compute activations twice, to save memory.", show_default=False),
    ] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate: 1e-3, with --model 1e-5.")] = None,
    loss: Annotated[
        Literal["auto", "contrastive", "sigmoid"] | None,
        typer.Option(help="auto is sigmoid for a model with a bias, else contrastive."),
    ] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of a moving average of the weights, which is kept.")] = None,
    augment: Annotated[
        Literal["none", "light", "heavy"] | None, typer.Option(help="How much pictures are varied.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp16"] | None,
        typer.Option(envvar="CLIPCLS_PRECISION", help="Of the forward pass."),
    ] = None,
    device: Annotated[str | None, typer.Option(envvar="CLIPCLS_DEVICE", help="auto, cpu, cuda, cuda:N or mps.")] = None,
    workers: Annotated[
        int | None, typer.Option(envvar="CLIPCLS_WORKERS", help="Threads that decode pictures; 0: one a core.")
    ] = None,
    compile: Annotated[
        bool | None, typer.Option("--compile", help="Run the towers through torch.compile.", show_default=False)
    ] = None,
    tensorboard: Annotated[
        bool | None, typer.Option("--tensorboard", help="Write the metrics for TensorBoard too.", show_default=False)
    ] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting of a --config file; repeatable."),
    ] = None,
    verbose: options.VerboseOption = False,
    quiet: options.QuietOption = False,
) -> None:
    """Train a model on pictures with captions; the folder it writes works with predict --model."""
    options.set_up_logging(verbose, quiet or not is_first_process())
    from clipcls.train.checkpoint import resumed_settings
    from clipcls.train.loop import train
    from clipcls.train.settings import load_settings, parse_assignments

    given = {name: value for name, value in context.params.items() if name not in NOT_SETTINGS}
    given |= {"templates": template or None, "output": output and str(output)}
    try:
        given |= parse_assignments(setting or [])
        settings = load_settings(config, given) if resume is None else resumed_settings(resume, config, given)
    except UsageError as exc:
        exc.told = not is_first_process()
        raise
    with progress_report(quiet) as watch, StopSignals("saving after this step") as signals:
        result = train(settings, watch, resume=resume is not None, asked_to_stop=signals.received)
    if not is_first_process():
        raise typer.Exit(signals.exit_code)
    for problem in () if quiet else result.problems[:PROBLEMS_SHOWN]:
        typer.echo(f"left out: {problem}", err=True)
    if result.problems:
        typer.echo(f"{len(result.problems)} rows or pictures left out", err=True)
    last = result.last_step
    if not result.finished:
        typer.echo(
            f"step {last.step} of {last.steps} is saved; go on with: clipcls train --resume {settings.output}", err=True
        )
        raise typer.Exit(signals.exit_code)
    typer.echo(f"trained in {result.seconds / 60:.1f} min, last loss {last.loss:.3f}", err=True)
    if result.best_validation is not None:
        best = result.best_validation
        typer.echo(f"the best model in the validations: {result.best} ({best} after step {best.step})", err=True)
    if not quiet:
        model = shlex.quote(str(result.best or result.model))
        typer.echo(f"use it: clipcls predict IMAGES --labels LABELS --model {model}", err=True)
    typer.echo(result.model)


@contextmanager
def progress_report(quiet: bool) -> "Iterator[TrainWatch]":
    """Show progress on stderr: a bar on a terminal, else a line now and then; and a line for each validation."""
    from clipcls.train.loop import TrainWatch

    if quiet:
        yield TrainWatch()
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield TrainWatch(step_lines(), lambda validated, is_best: typer.echo(summary(validated, is_best), err=True))
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None)

        def show_step(figures: "StepFigures") -> None:
            bar.update(task, total=figures.steps, completed=figures.step, description=describe(figures))

        def show_validation(validated: "Validated", is_best: bool) -> None:
            bar.console.print(summary(validated, is_best), highlight=False, markup=False, soft_wrap=True)

        yield TrainWatch(show_step, show_validation)


def step_lines() -> Callable[["StepFigures"], None]:
    """Return what writes a line every few seconds, and for the last step."""
    import time

    next_line = 0.0

    def show_step(figures: "StepFigures") -> None:
        nonlocal next_line
        if time.monotonic() >= next_line or figures.step == figures.steps:
            next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            typer.echo(f"step {figures.step}/{figures.steps}  {describe(figures)}", err=True)

    return show_step


def summary(validated: "Validated", is_best: bool) -> str:
    """Return the line for a validation."""
    return f"validation after step {validated.step}: {validated}{', the best so far' if is_best else ''}"


def describe(figures: "StepFigures") -> str:
    """Return the figures of a step as a line shows them."""
    return (
        f"loss {figures.loss:.3f}  lr {figures.learning_rate:.1e}  scale {figures.scale:.1f}  "
        f"{figures.images_per_second:.0f} images/s  {timedelta(seconds=round(figures.seconds_left))} left"
    )
