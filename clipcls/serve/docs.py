"""Describe what may be asked: as an OpenAPI specification, and as a page made from it."""

import json
import re
from dataclasses import dataclass
from functools import cache, lru_cache
from html import escape
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from clipcls.outputs.content_policy import inline_source
from clipcls.serve.bodies import UPLOAD_SECONDS
from clipcls.serve.dialects import EmbeddingsRequest, ZeroShotRequest
from clipcls.serve.page import Page
from clipcls.serve.requests import EmbedRequest, PredictRequest, SearchRequest

_FORM = "multipart/form-data"
_JSON = "application/json"
_STYLE = """
:root { color-scheme: light dark; --ink: #1d2023; --paper: #f7f7f5; --grey: #5a6067; --line: #dcdcd7; --well: #eeeeea; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e9ea; --paper: #141618; --grey: #a3a9b0; --line: #33383d; --well: #25292d; }
}
body {
  margin: 0 auto; max-width: 62rem; padding: 1rem; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { font-size: 1.3rem; }
h2 { font-size: 1.05rem; margin: 2rem 0 .3rem; border-top: 1px solid var(--line); padding-top: 1rem; }
code, pre { font-family: ui-monospace, SFMono-Regular, Consolas, "DejaVu Sans Mono", monospace; font-size: .9em; }
pre { background: var(--well); padding: .7rem; overflow-x: auto; border-radius: 6px; }
dl { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .2rem 1rem; }
dt { font-weight: 600; } dd { margin: 0; color: var(--grey); } a { color: inherit; }
"""


@dataclass(frozen=True, slots=True)
class _Call:
    """An endpoint, as the specification and the page tell of it."""

    method: str
    path: str
    says: str
    takes: type[BaseModel] | None = None
    media: tuple[str, ...] = ()
    example: str = ""


_CALLS = (
    _Call(
        "POST",
        "/predict",
        "Give labels to pictures: uploaded, in the fields, or one picture as the body, with fields in the address. "
        "The rows are those of `clipcls predict --format jsonl`; with `Accept: application/jsonl` they are all that is "
        "answered. A form's `labels` are split at commas, its `label` isn't.",
        PredictRequest,
        (_FORM, _JSON, "image/*"),
        "curl -F files=@cat.jpg -F labels=cat,dog,truck {url}/predict\n"
        "curl --data-binary @cat.jpg -H 'Content-Type: image/jpeg' '{url}/predict?labels=cat,dog&top_k=2'",
    ),
    _Call(
        "POST",
        "/embed",
        "Embed pictures and texts; features are L2-normalised.",
        EmbedRequest,
        (_FORM, _JSON, "image/*"),
        "curl -F files=@cat.jpg -F texts='a photo of a cat' {url}/embed",
    ),
    _Call(
        "POST",
        "/search",
        "Find pictures among those of `--features`, by a text, a picture, or both.",
        SearchRequest,
        (_FORM, _JSON, "image/*"),
        'curl --json \'{{"query": "a red car", "top_k": 5}}\' {url}/search',
    ),
    _Call("GET", "/models", "Say which model answers, and what may be asked of it.", example="curl {url}/models"),
    _Call(
        "POST",
        "/",
        "Hugging Face's task `zero-shot-image-classification`.",
        ZeroShotRequest,
        (_JSON, "image/*"),
        "from huggingface_hub import InferenceClient\n\n"
        'client = InferenceClient(base_url="{url}", token="KEY")\n'
        'print(client.zero_shot_image_classification("cat.jpg", ["cat", "dog"]))',
    ),
    _Call(
        "POST",
        "/v1/embeddings",
        "OpenAI's embeddings, of texts and of pictures as data: URIs.",
        EmbeddingsRequest,
        (_JSON,),
        "from openai import OpenAI\n\n"
        'client = OpenAI(base_url="{url}/v1", api_key="KEY")\n'
        "model = client.models.list().data[0].id\n"
        'print(client.embeddings.create(model=model, input=["a photo of a cat"]).data[0].embedding)',
    ),
    _Call("GET", "/v1/models", "OpenAI's list of models."),
    _Call("GET", "/health", "Answer as long as the server runs."),
    _Call("GET", "/ready", "Answer 200 once the model is loaded, and 503 before."),
    _Call("GET", "/metrics", "Figures for Prometheus."),
)
_ERRORS = {
    "401": "the API key is missing or wrong",
    "408": f"the body didn't come within {UPLOAD_SECONDS:g} seconds",
    "413": "the body, or a picture, is too large",
    "415": "the body's type isn't known, or the picture's format",
    "422": "a field is wrong, or the picture is damaged",
    "503": "the model is being loaded, or too much waits: come again after Retry-After seconds",
}


@cache
def openapi() -> dict[str, Any]:
    """Return the OpenAPI specification of the server."""
    models = [call.takes for call in _CALLS if call.takes is not None]
    _, schemas = models_json_schema(
        [(model, "validation") for model in models], ref_template="#/components/schemas/{model}"
    )
    paths: dict[str, Any] = {}
    for call in _CALLS:
        operation: dict[str, Any] = {"summary": call.says, "responses": {"200": {"description": "the answer"}}}
        if call.takes is not None:
            reference = {"$ref": f"#/components/schemas/{call.takes.__name__}"}
            content = {media: {"schema": reference} for media in call.media if media == _JSON}
            content |= {media: {"schema": _form_of(call.takes)} for media in call.media if media == _FORM}
            content |= {
                media: {"schema": {"type": "string", "format": "binary"}} for media in call.media if media == "image/*"
            }
            operation["requestBody"] = {"required": True, "content": content}
            operation["responses"] |= {status: {"description": says} for status, says in _ERRORS.items()}
        paths.setdefault(call.path, {})[call.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "clipcls", "version": version("clipcls")},
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}, {}],
    }


def _form_of(model: type[BaseModel]) -> dict[str, Any]:
    """Return the schema of a form: the model's fields, and the files."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}}
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"allOf": [reference, {"type": "object", "properties": {"files": files}}]}


@lru_cache(maxsize=16)
def docs_page(url: str) -> Page:
    """Return the specification as a page, which loads nothing from elsewhere.

    Args:
        url: of the server, as the client calls it.
    """
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width, initial-scale=1'><title>clipcls: the API</title>",
        f"<style>{_STYLE}</style><h1>clipcls: the API</h1>",
        '<p>Errors are <code>{"error": {"message", "type", "param", "code"}}</code>. With a key: '
        "<code>Authorization: Bearer KEY</code>. <a href=openapi.json>openapi.json</a> · <a href='./'>try it</a></p>",
        "<dl>",
        *(f"<dt>{status}<dd>{escape(says)}" for status, says in _ERRORS.items()),
        "</dl>",
    ]
    for call in _CALLS:
        parts.append(f"<h2><code>{call.method} {escape(call.path)}</code></h2><p>{_marked(call.says)}</p>")
        if call.example:
            parts.append(f"<pre>{escape(call.example.format(url=url))}</pre>")
        if call.takes is not None:
            parts.append(f"<p>{escape(', '.join(call.media))}</p><dl>")
            for name, field in call.takes.model_fields.items():
                default = "required" if field.is_required() else _default(field.default)
                says = " · ".join(part for part in (field.description, default) if part)
                parts.append(f"<dt><code>{escape(name)}</code><dd>{escape(says)}")
            parts.append("</dl>")
    html = "\n".join(parts)
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": f"default-src 'none'; style-src {inline_source(html, 'style')}; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
    }
    return Page(html.encode(), headers)


def _marked(text: str) -> str:
    """Return a text as HTML, with what stands between backticks as code."""
    return re.sub(r"`(.+?)`", r"<code>\1</code>", escape(text))


def _default(value: Any) -> str:
    if value is None or value == [] or isinstance(value, BaseModel):
        return ""
    return f"default {json.dumps(value)}"
