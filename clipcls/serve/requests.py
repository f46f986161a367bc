"""What clients may ask, in clipcls's own dialect; the fields are named as the options of the command line."""

import base64
import binascii
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from clipcls.inputs.discover import image_on_web, is_web
from clipcls.labels.label_files import split_at_commas
from clipcls.predict.scores import SCORE_KINDS
from clipcls.records import ImageRef
from clipcls.serve.bodies import Body
from clipcls.serve.problems import RequestError

#: Pictures of one request.
MOST_PICTURES = 64
#: Labels, texts or templates of one request.
MOST_TEXTS = 10_000
#: Signs of one of them: a word's tokens take time with the square of its length, and models see some 300 signs.
MOST_SIGNS = 1000


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_labels(value: Any) -> Any:
    return split_at_commas(value, "--labels") if isinstance(value, str) else value


def _as_few(value: Any) -> Any:
    # before each of them is looked at
    if isinstance(value, list) and len(value) > MOST_PICTURES:
        raise ValueError(f"{len(value):,} pictures; a request may have {MOST_PICTURES}")
    return value


Text = Annotated[str, Field(max_length=MOST_SIGNS)]
Texts = Annotated[list[Text], BeforeValidator(_as_list), Field(min_length=1, max_length=MOST_TEXTS)]


class NamedImage(BaseModel):
    """A picture with the name that its row gets."""

    model_config = ConfigDict(extra="forbid")

    name: str
    data: str = Field(description="base64, a data: URI, or, where the server fetches, an address")


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _WithImages(_Request):
    images: Annotated[list[str | NamedImage], BeforeValidator(_as_few)] = Field(
        default=[],
        description="pictures: base64, data: URIs, or, where the server fetches, addresses",
    )


class _WithPrompts(_Request):
    prompts: str | None = Field(default=None, description="the name of a built-in prompt set")
    template: Texts | None = Field(default=None, description='templates such as "a photo of a {}", instead of prompts')


class PredictRequest(_WithPrompts, _WithImages):
    """Pictures to give labels to."""

    labels: Annotated[list[Text], BeforeValidator(_as_labels), Field(min_length=1, max_length=MOST_TEXTS)] | None = (
        Field(default=None, description="labels; as one text they are separated by commas; by default the server's")
    )
    score: str | None = Field(default=None, description=f"{', '.join(SCORE_KINDS)}; by default softmax")
    multi_label: bool = Field(default=False, description="every label that reaches the threshold is an answer")
    background: Text | None = Field(default=None, description="what sigmoid scores without a bias compare with")
    top_k: int | None = Field(default=None, ge=1, description="labels to list for each picture")
    threshold: float | None = Field(default=None, description="lowest score; below it a picture is unknown")
    min_margin: float | None = Field(default=None, description="lowest distance of the best score to the second")
    unknown: bool = Field(default=False, description="a picture that looks more like other words is unknown")
    min_known: float | None = Field(default=None, description="with unknown: where the labels' share is lower; 0.5")
    explain: bool = Field(default=False, description="also the similarity of each prompt of the two best labels")


class EmbedRequest(_WithPrompts, _WithImages):
    """Pictures and texts to embed."""

    texts: Annotated[list[Text], BeforeValidator(_as_list), Field(max_length=MOST_TEXTS)] = Field(
        default=[], description="texts; taken as they are, unless prompts or template are given"
    )


class SearchRequest(_WithPrompts, _WithImages):
    """What to look for among the pictures that the server has features of: a text, or a picture."""

    query: Text | None = Field(default=None, min_length=1, description="a text")
    top_k: int = Field(default=10, ge=1, le=10_000, description="the most pictures to list")
    threshold: float | None = Field(default=None, description="lowest score")


_R = TypeVar("_R", bound=_Request)


def parse(kind: type[_R], body: Body) -> _R:
    """Return the request that a body holds.

    Raises:
        ValidationError: a field is wrong.
    """
    return kind.model_validate(body.fields if body.is_json else _of_form(kind, body.fields))


def _of_form(kind: type[_Request], texts: dict[str, list[str]]) -> dict[str, Any]:
    """Return the fields of a form: those that hold lists as lists, others as the text that they are.

    `labels` is split at commas as the option is, `label` isn't.
    """
    fields: dict[str, Any] = {}
    for name, values in texts.items():
        if name == "labels":
            fields[name] = [*fields.get(name, []), *(part for text in values for part in _as_labels(text))]
        elif name == "label" and "labels" in kind.model_fields:
            fields["labels"] = [*fields.get("labels", []), *values]
        elif name in ("template", "texts", "images") or len(values) > 1:
            fields[name] = values
        else:
            fields[name] = values[0]
    return fields


def images_of(images: Sequence[str | NamedImage], body: Body, may_fetch: bool) -> list[ImageRef]:
    """Return the pictures of a request: those of fields, then uploaded files.

    Raises:
        RequestError: one isn't base64, or is an address, and the server fetches none.
    """
    found = [_image(place, image, may_fetch) for place, image in enumerate(images)]
    return [*found, *(ImageRef(name, content=data) for name, data in body.files)]


def _image(place: int, image: str | NamedImage, may_fetch: bool) -> ImageRef:
    param = f"images.{place}"
    name, data = (image.name, image.data) if isinstance(image, NamedImage) else (param, image)
    if is_web(data):
        if not may_fetch:
            raise RequestError(422, f"{param}: an address; this server fetches none (--allow-urls).", param)
        return image_on_web(data, True)
    return ImageRef(name, content=decoded(data, param))


def decoded(data: str, param: str) -> bytes:
    """Return the bytes that base64, or a data: URI, stands for.

    Raises:
        RequestError: it is neither.
    """
    if data.startswith("data:"):
        head, comma, data = data.partition(",")
        if not comma or not head.endswith(";base64"):
            raise RequestError(422, f"{param}: a data: URI that isn't base64.", param)
    try:
        return base64.b64decode(data.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise RequestError(422, f"{param}: no base64.", param) from exc
