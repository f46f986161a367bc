"""clipcls's own dialect: what is asked is named as on the command line, what is answered is its JSONL rows."""

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from clipcls.embed.image_reader import Features
from clipcls.labels.prompts import builtin_names
from clipcls.outputs.hits import hit_fields
from clipcls.outputs.rows import rounded, row_fields
from clipcls.predict.scores import SCORE_KINDS
from clipcls.predict.taught import Taught
from clipcls.serve.bodies import BodyReader
from clipcls.serve.problems import RequestError, image_error, not_ready
from clipcls.serve.requests import MOST_PICTURES, EmbedRequest, PredictRequest, SearchRequest, images_of, parse
from clipcls.serve.rows import json_lines, json_object, json_rows
from clipcls.serve.service import EmbeddedPictures, Service

_JSON_LINES = ("application/jsonl", "application/x-ndjson", "application/jsonlines")


class OwnDialect:
    """`/predict`, `/embed`, `/search` and `/models`."""

    def __init__(self, service: Service, bodies: BodyReader) -> None:
        self._service = service
        self._bodies = bodies

    async def predict(self, request: Request) -> Response:
        """Give labels to pictures."""
        service = require_ready(self._service)
        async with self._bodies.read(request, MOST_PICTURES) as body:
            asked = parse(PredictRequest, body)
            embedded = await service.embed(images_of(asked.images, body, service.may_fetch))
            count_pictures(request, embedded)
            refuse_lone_error(embedded)
            predictions, warnings = await service.predict(asked, embedded)
        if any(kind in request.headers.get("accept", "") for kind in _JSON_LINES):
            lines = await json_lines(row_fields, predictions)
            return Response("".join(f"{line}\n" for line in lines), media_type=_JSON_LINES[0])
        rows = await json_rows(row_fields, predictions)
        return json_object(model=service.session.name, predictions=rows, warnings=warnings)

    async def embed(self, request: Request) -> Response:
        """Embed pictures and texts."""
        service = require_ready(self._service)
        async with self._bodies.read(request, MOST_PICTURES) as body:
            asked = parse(EmbedRequest, body)
            images = images_of(asked.images, body, service.may_fetch)
            if not images and not asked.texts:
                raise RequestError(422, "images: nothing to embed. Give images, texts, or upload files.", "images")
            prompts = service.prompt_set(asked.prompts, asked.template)
            if prompts is not None and not asked.texts:
                raise RequestError(422, "template: prompts and template are for texts.", "template")
            answer: dict[str, Any] = {"model": service.session.name, "images": [], "texts": [], "warnings": []}
            if images:
                embedded = await service.embed(images)
                count_pictures(request, embedded)
                if not asked.texts:
                    refuse_lone_error(embedded)
                answer["images"] = await json_rows(_with_numbers, _embedded_rows(embedded))
            if asked.texts:
                features, cut = await service.embed_texts(asked.texts, prompts)
                rows = [{"text": text, "features": row} for text, row in zip(asked.texts, features, strict=True)]
                answer["texts"] = await json_rows(_with_numbers, rows)
                answer["warnings"] = [] if cut is None else [cut]
        return json_object(**answer)

    async def search(self, request: Request) -> Response:
        """Find pictures among those that the server has features of."""
        service = require_ready(self._service)
        async with self._bodies.read(request, 1) as body:
            asked = parse(SearchRequest, body)
            images = images_of(asked.images, body, service.may_fetch)
            if len(images) > 1:
                raise RequestError(422, "images: a query has one picture.", "images")
            embedded = None
            if images:
                embedded = await service.embed(images)
                count_pictures(request, embedded)
                refuse_lone_error(embedded)
            hits, warnings = await service.search(asked, embedded)
        return JSONResponse(
            {"model": service.session.name, "hits": [hit_fields(hit) for hit in hits], "warnings": warnings}
        )

    async def models(self, _: Request) -> Response:
        """Say which model answers, and what may be asked of it."""
        service = require_ready(self._service)
        facts, settings = service.session.facts, service.settings
        chosen = settings.labels
        labels = chosen.labels if isinstance(chosen, Taught) else chosen
        model = {
            "name": service.session.name,
            "fingerprint": service.session.fingerprint.hex(),
            "embed_dim": facts.embed_dim,
            "device": facts.device,
            "precision": facts.precision,
            "runtime": facts.runtime,
            "input_size": facts.preprocess.size,
            "context_length": facts.context_length,
            "labels": None if labels is None else [label.name for label in labels],
            "prompts": None if service.prompts is None else service.prompts.name,
            # those that the server was started with; None for what the model has anyway
            "templates": None if settings.prompts is None else settings.prompts.templates,
        }
        return JSONResponse(
            {
                "models": [model],
                "prompt_sets": builtin_names(),
                "scores": list(SCORE_KINDS),
                "max_pictures": service.most_pictures,
                "search": service.pool is not None,
                "urls": service.may_fetch,
            }
        )


def require_ready(service: Service) -> Service:
    """Return the service once its model is loaded.

    Raises:
        RequestError: it isn't yet.
    """
    if not service.is_ready:
        raise not_ready()
    return service


def refuse_lone_error(embedded: EmbeddedPictures) -> None:
    """Raise the error of a request whose only picture can't be read; of several, rows say it.

    Raises:
        RequestError: there is such an error.
    """
    if len(embedded.batch.images) == 1 and embedded.errors:
        raise image_error(embedded.errors[0], embedded.batch.images[0].path, "images")


def count_pictures(request: Request, embedded: EmbeddedPictures) -> None:
    """Note for the log and the figures how many pictures the request had."""
    request.state.pictures = len(embedded.batch.images)
    request.state.failed_pictures = len(embedded.errors)


def _embedded_rows(embedded: EmbeddedPictures) -> list[dict[str, Any]]:
    batch = embedded.batch
    features = iter(batch.features)
    return [
        {"path": image.path, "features": next(features) if error is None else None, "error": error}
        for image, error in zip(batch.images, batch.errors, strict=True)
    ]


def _with_numbers(row: dict[str, Any]) -> dict[str, Any]:
    features: Features | None = row["features"]
    return row | {"features": None if features is None else [rounded(value) for value in features.tolist()]}
