"""`clipcls serve`."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from clipcls.cli import options


@options.grouped
def serve_command(
    *,
    context: typer.Context,
    # where
    host: Annotated[str, typer.Option("--host", help="Address to listen at; 0.0.0.0 lets other machines ask.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            metavar="KEY",
            envvar="CLIPCLS_API_KEY",
            help="What requests must bring as Authorization: Bearer KEY.",
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin",
            metavar="ORIGIN",
            help="Let scripts of pages at this origin, as https://example.org, read answers; repeatable; * for all.",
        ),
    ] = None,
    # what to look for, unless a request says it
    wanted: options.LabelOptions,
    prompts: options.PromptsOption = None,
    template: options.TemplateOption = None,
    taught: options.TaughtOption = None,
    features: Annotated[
        Path | None,
        typer.Option("--features", metavar="FILE", help="What `clipcls embed` wrote, for /search; a file or a folder."),
    ] = None,
    # with which model
    asked: options.ModelOptions,
    # limits
    max_queue: Annotated[
        int, typer.Option("--max-queue", metavar="N", min=1, help="Pictures that may wait; more get 503.")
    ] = 512,
    max_request: Annotated[
        int, typer.Option("--max-request", metavar="MB", min=1, help="Larger bodies of requests get 413.")
    ] = 64,
    limits: options.LimitOptions,
    allow_urls: options.AllowUrlsOption = False,
    allow_private_urls: options.AllowPrivateUrlsOption = False,
    fetching: options.FetchOptions,
    # how to run
    how: options.RunOptions,
    log_format: Annotated[
        Literal["text", "json"], typer.Option("--log-format", help="Of the line that each request gets on stderr.")
    ] = "text",
    verbosity: options.VerbosityOptions,
) -> None:
    """Answer over HTTP, in the dialects of clipcls, Hugging Face and OpenAI, with a page to try it.

    Example: clipcls serve --labels cat,dog,truck
    """
    verbosity.set_up_logging()
    from clipcls.embed.session import Session
    from clipcls.errors import UsageError
    from clipcls.outputs.vectors import read_vectors

    try:
        from clipcls.serve.app import AppSettings, create_app
        from clipcls.serve.classifiers import divert_warnings
        from clipcls.serve.server import listen, serve
        from clipcls.serve.service import Service, ServiceSettings
    except ModuleNotFoundError as exc:
        raise UsageError(f"`clipcls serve` needs the package {exc.name}: pip install 'clipcls[serve]'") from exc

    if api_key is not None and (not api_key.strip() or not api_key.isascii()):
        raise UsageError("--api-key: give a key of ASCII signs, or leave it out.")
    origins = tuple(allow_origin or ())
    for given in origins:
        if given != "*" and not re.fullmatch(r"https?://[^/\s]+", given):
            raise UsageError(f"--allow-origin {given}: expected an origin, such as https://example.org, or *.")
    web = fetching.web(options.InputOptions(allow_urls=allow_urls, allow_private_urls=allow_private_urls))
    prompt_set = options.prompt_set(prompts, template)
    learned = None
    if taught is not None:
        # by its name alone, since errors of requests tell it
        learned = replace(options.read_taught(taught, wanted.are_given, prompts, template), name=taught.name)
    labels = learned or (wanted.read() if wanted.are_given else None)
    stored = None if features is None else read_vectors(features)
    origin = stored.origin if stored is not None and learned is None else None
    made_by = learned.origin.model if learned is not None else None if origin is None else origin.model
    spec = asked.spec_for(context, made_by)
    listener = listen(host, port)
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{shown}:{listener.getsockname()[1]}"

    def say(line: str) -> None:
        print(line, file=sys.stderr)

    def announce() -> None:
        if not verbosity.quiet:
            say(f"clipcls: ready at {url}/")
        divert_warnings()

    if not verbosity.quiet:
        say(f"clipcls: {url}/ loads {spec.name}; Ctrl-C stops it")
    if api_key is None and not _is_loopback(host):
        typer.echo(f"clipcls: warning: whoever reaches {url} may use it; --api-key asks for a key", err=True)
    with Session(spec, how.execution(limits, False, web)) as session:
        pool = None if stored is None else (stored, str(features))
        service = Service(session, ServiceSettings(labels, prompt_set, pool, max_queue))
        log = None if verbosity.quiet else say
        settings = AppSettings(
            api_key, log, log_format, max_request * 2**20, max(2**30, 4 * max_request * 2**20), origins
        )
        serve(create_app(service, settings), service, listener, announce)
    if not verbosity.quiet:
        say("clipcls: stopped")


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
