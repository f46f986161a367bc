"""`clipcls train`: train a dual encoder on pictures and captions."""

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
    from clipcls.train.trainer import Progress

SECONDS_BETWEEN_LINES = 15
PROBLEMS_SHOWN = 10


Precision = Literal["auto", "fp32", "bf16", "fp16"]
Augment = Literal["none", "light", "heavy"]
Loss = Literal["auto", "contrastive", "sigmoid"]


def train(
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
        str | None, typer.Option(help="Start from this model: what predict takes; instead of --arch.")
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
        Loss | None, typer.Option(help="auto is sigmoid for a model with a bias, else contrastive.")
    ] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of a moving average of the weights, which is kept.")] = None,
    augment: Annotated[Augment | None, typer.Option(help="How much pictures are varied.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.")] = None,
    precision: Annotated[
        Precision | None, typer.Option(envvar="CLIPCLS_PRECISION", help="Of the forward pass.")
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
    from clipcls.train.loop import train as run
    from clipcls.train.settings import load_settings, parse_assignments

    given = {
        "data": data,
        "arch": arch,
        "model": model,
        "lock_image": lock_image,
        "lock_text": lock_text,
        "templates": template or None,
        "strict_data": strict_data,
        "output": output and str(output),
        "validation": validation,
        "zero_shot": zero_shot,
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "grad_checkpointing": grad_checkpointing,
        "learning_rate": learning_rate,
        "loss": loss,
        "ema": ema,
        "augment": augment,
        "seed": seed,
        "precision": precision,
        "device": device,
        "workers": workers,
        "compile": compile,
        "tensorboard": tensorboard,
    }
    try:
        given |= parse_assignments(setting or [])
        settings = load_settings(config, given) if resume is None else resumed_settings(resume, config, given)
    except UsageError as exc:
        exc.told = not is_first_process()
        raise
    with progress_report(quiet) as report, StopSignals("saving after this step") as signals:
        result = run(settings, report, resume=resume is not None, asked_to_stop=signals.received)
    if not is_first_process():
        raise typer.Exit(signals.exit_code)
    for problem in () if quiet else result.problems[:PROBLEMS_SHOWN]:
        typer.echo(f"left out: {problem}", err=True)
    if result.problems:
        typer.echo(f"{len(result.problems)} rows or pictures left out", err=True)
    done = result.progress
    if not result.finished:
        typer.echo(
            f"step {done.step} of {done.steps} is saved; go on with: clipcls train --resume {settings.output}", err=True
        )
        raise typer.Exit(signals.exit_code)
    typer.echo(f"trained in {result.seconds / 60:.1f} min, last loss {done.loss:.3f}", err=True)
    if result.best is not None:
        typer.echo(f"the best model in the validations: {result.best}", err=True)
    typer.echo(result.model)


@contextmanager
def progress_report(quiet: bool) -> Iterator[Callable[["Progress"], None]]:
    """Show progress on stderr: a bar on a terminal, else a line now and then."""
    if quiet:
        yield lambda progress: None
        return
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield line_report()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Bar(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None)

        def report(progress: "Progress") -> None:
            bar.update(task, total=progress.steps, completed=progress.step, description=describe(progress))

        yield report


def line_report() -> Callable[["Progress"], None]:
    """Writes a line every few seconds, and for the last step."""
    import time

    next_line = 0.0

    def report(progress: "Progress") -> None:
        nonlocal next_line
        if time.monotonic() >= next_line or progress.step == progress.steps:
            next_line = time.monotonic() + SECONDS_BETWEEN_LINES
            typer.echo(f"step {progress.step}/{progress.steps}  {describe(progress)}", err=True)

    return report


def describe(progress: "Progress") -> str:
    """The figures of a step."""
    return (
        f"loss {progress.loss:.3f}  lr {progress.learning_rate:.1e}  scale {progress.scale:.1f}  "
        f"{progress.images_per_second:.0f} images/s  {timedelta(seconds=round(progress.seconds_left))} left"
    )
