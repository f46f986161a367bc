"""The dialects of others, which their clients speak unmodified: Hugging Face's inference and OpenAI's embeddings."""

import base64
import time
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from clipcls.embed.image_reader import Features
from clipcls.inputs.discover import is_web
from clipcls.outputs.rows import rounded
from clipcls.records import ImageRef
from clipcls.serve.bodies import BodyReader
from clipcls.serve.endpoints import count_pictures, refuse_lone_error, require_ready
from clipcls.serve.problems import RequestError
from clipcls.serve.requests import MOST_SIGNS, MOST_TEXTS, PredictRequest, Text, image_of
from clipcls.serve.rows import json_object, json_rows
from clipcls.serve.service import Service


class ZeroShotParameters(BaseModel):
    """The parameters of Hugging Face's task `zero-shot-image-classification`."""

    candidate_labels: list[Text] | None = Field(default=None, min_length=1, max_length=MOST_TEXTS)
    hypothesis_template: Text | None = None
    top_k: int | None = Field(default=None, ge=1, description="labels to answer with; by default all")
    function_to_apply: Literal["softmax", "sigmoid"] | None = Field(
        default=None, description="how scores are computed; by default softmax"
    )


class ZeroShotRequest(BaseModel):
    """A request of Hugging Face's task `zero-shot-image-classification`."""

    inputs: str = Field(description="the picture in base64")
    parameters: ZeroShotParameters = ZeroShotParameters()


class HuggingFace:
    """`POST /`, as an inference endpoint of the task `zero-shot-image-classification` answers.

    Source: https://huggingface.co/docs/inference-providers/tasks/zero-shot-image-classification
    """

    def __init__(self, service: Service, bodies: BodyReader) -> None:
        self._service = service
        self._bodies = bodies

    async def classify(self, request: Request) -> Response:
        """Return all labels with their scores, the best first; without parameters the picture is the body."""
        service = require_ready(self._service)
        async with self._bodies.read(request, 1) as body:
            if body.files:
                asked, sent = ZeroShotParameters(), [ImageRef("inputs", content=body.files[0][1])]
            else:
                given = ZeroShotRequest.model_validate(body.fields)
                asked, sent = given.parameters, [image_of(given.inputs, "inputs", service.may_fetch)]
            template = None if asked.hypothesis_template is None else [asked.hypothesis_template]
            fields = {
                "labels": asked.candidate_labels,
                "template": template,
                "score": asked.function_to_apply,
                "top_k": asked.top_k or MOST_TEXTS,
            }
            embedded = await service.embed(sent)
            count_pictures(request, embedded)
            refuse_lone_error(embedded)
            (prediction,), _ = await service.predict(PredictRequest.model_validate(fields), embedded)
        return JSONResponse([{"label": entry.label, "score": rounded(entry.score)} for entry in prediction.top])


def _as_list(value: Any) -> Any:
    if isinstance(value, list) and value and not all(isinstance(item, str) for item in value):
        raise ValueError("expected texts, or pictures as data: URIs; tokens are another model's")
    return [value] if isinstance(value, str) else value


class EmbeddingsRequest(BaseModel):
    """A request of OpenAI's `POST /v1/embeddings`."""

    input: Annotated[list[str], BeforeValidator(_as_list), Field(min_length=1, max_length=2048)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = None


class OpenAI:
    """`POST /v1/embeddings` and `GET /v1/models`.

    Source: https://platform.openai.com/docs/api-reference/embeddings
    """

    def __init__(self, service: Service, bodies: BodyReader) -> None:
        self._service = service
        self._bodies = bodies
        self._since = int(time.time())

    async def embeddings(self, request: Request) -> Response:
        """Embed texts, and pictures that are data: URIs."""
        service = require_ready(self._service)
        async with self._bodies.read(request, 0) as body:
            asked = EmbeddingsRequest.model_validate(body.fields)
            width = service.session.facts.embed_dim
            if asked.dimensions not in (None, width):
                raise RequestError(422, f"dimensions: this model's embeddings have {width} numbers.", "dimensions")
            if asked.model not in (None, service.session.name):
                raise RequestError(404, f"model: {asked.model!r} isn't here; {service.session.name!r} is.", "model")
            pictures = [place for place, text in enumerate(asked.input) if _is_picture(text, service)]
            rows: dict[int, Features] = {}
            if pictures:
                rows |= await self._pictures(request, asked.input, pictures)
            places = [place for place in range(len(asked.input)) if place not in rows]
            tokens = 0
            if places:
                texts = [asked.input[place] for place in places]
                if any(len(text) > MOST_SIGNS for text in texts):
                    raise RequestError(422, f"input: a text of more than {MOST_SIGNS:,} signs. Shorten it.", "input")
                features, cut = await service.embed_texts(texts, None)
                if cut is not None:
                    raise RequestError(422, f"input: {cut}. Shorten it.", "input")
                rows |= dict(zip(places, features, strict=True))
                tokens = await service.count_tokens(texts)

        def entry(place: int) -> dict[str, Any]:
            return {"object": "embedding", "index": place, "embedding": _encoded(rows[place], asked.encoding_format)}

        data = await json_rows(entry, range(len(asked.input)))
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return json_object(object="list", data=data, model=service.session.name, usage=usage)

    async def models(self, _: Request) -> Response:
        """Name the model."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, request: Request) -> Response:
        """Tell of the model, by its name."""
        asked, model = request.path_params["name"], self._model()
        if asked != model["id"]:
            raise RequestError(404, f"model: {asked!r} isn't here; {model['id']!r} is.", "model")
        return JSONResponse(model)

    def _model(self) -> dict[str, Any]:
        name = require_ready(self._service).session.name
        return {"id": name, "object": "model", "created": self._since, "owned_by": "clipcls"}

    async def _pictures(self, request: Request, inputs: list[str], places: list[int]) -> dict[int, Features]:
        self._service.refuse_many(len(places), "input")
        images = [image_of(inputs[place], f"input.{place}", self._service.may_fetch) for place in places]
        embedded = await self._service.embed(images)
        count_pictures(request, embedded)
        for place, error in embedded.errors.items():
            raise RequestError(422, f"input.{places[place]}: {error}", "input") from error
        return dict(zip(places, embedded.batch.features, strict=True))


def _is_picture(text: str, service: Service) -> bool:
    return text.startswith("data:image/") or (service.may_fetch and is_web(text))


def _encoded(features: Features, encoding: str) -> list[float | None] | str:
    if encoding == "base64":
        return base64.b64encode(features.astype(np.dtype("<f4")).tobytes()).decode("ascii")
    return [rounded(value) for value in features.tolist()]
