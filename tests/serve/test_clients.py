"""Unmodified clients of others, and answers that equal the command line's."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import openai
import pytest
from huggingface_hub import InferenceClient
from PIL import Image

from clipcls.embed.execution import Execution
from clipcls.embed.images import embed_images
from clipcls.embed.session import Session
from clipcls.labels.label_files import make_label
from clipcls.predict.classifier import Classifier
from clipcls.predict.ranking import Scoring
from clipcls.records import ImageRef, ModelSpec
from clipcls.serve.service import ServiceSettings
from conftest import save_model
from serving import Running, form, picture, served
from tiny_models import CLASSNAMES, SIGLIP_CONFIG, SIGLIP_PREPROCESS, save_tokenizer

LABELS = ["red", "green square", "blue"]


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Running]:
    with served(tiny_model, app_settings={"api_key": "secret"}) as running:
        yield running
    huggingface_hub.close_session()


@pytest.fixture(scope="module")
def session(tiny_model: Path) -> Session:
    return Session(ModelSpec(str(tiny_model), device="cpu", precision="fp32"), Execution())


def scores_of(session: Session, path: Path, labels: list[str], template: str | None = None) -> dict[str, float]:
    classifier = Classifier(session, labels, None if template is None else [template], Scoring(top_k=len(labels)))
    (prediction,) = classifier.predict(path)
    return {entry.label: entry.score for entry in prediction.top}


@pytest.mark.parametrize("template", [None, "a drawing of a {}"])
def test_hugging_faces_client(server: Running, session: Session, tmp_path: Path, template: str | None) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(picture("red"))
    client = InferenceClient(base_url=server.url, token="secret")
    found = client.zero_shot_image_classification(str(path), LABELS, hypothesis_template=template)
    assert {entry.label: entry.score for entry in found} == pytest.approx(
        scores_of(session, path, LABELS, template), abs=1e-5
    )
    assert [entry.score for entry in found] == sorted((entry.score for entry in found), reverse=True)


def test_hugging_faces_client_of_images_with_the_servers_labels(tiny_model: Path) -> None:
    labels = tuple(map(make_label, LABELS))
    with served(tiny_model, ServiceSettings(labels)) as server:
        client = InferenceClient(base_url=server.url, token="-")
        every = client.image_classification(picture())
        assert [entry.label for entry in client.image_classification(picture(), top_k=2)] == [
            entry.label for entry in every[:2]
        ]
        assert sum(entry.score for entry in every) == pytest.approx(1, abs=1e-5)
        found = client.image_classification(picture(), function_to_apply="sigmoid")
        assert sum(entry.score for entry in found) != pytest.approx(1, abs=1e-2)
    huggingface_hub.close_session()


def test_hugging_faces_client_hears_of_errors(server: Running, tmp_path: Path) -> None:
    with pytest.raises(Exception, match="401"):
        InferenceClient(base_url=server.url, token="wrong").zero_shot_image_classification(picture(), LABELS)
    with pytest.raises(Exception, match="415"):
        InferenceClient(base_url=server.url, token="secret").zero_shot_image_classification(b"no picture", LABELS)
    with pytest.raises(Exception, match="inputs: no base64"):
        InferenceClient(base_url=server.url, token="secret").feature_extraction("a text")


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as opened:
        yield opened


# the client asks for base64 unless it is told otherwise, and makes numbers of it
@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}])
def test_openais_client(client: openai.OpenAI, session: Session, encoding: dict[str, Any]) -> None:
    (model,) = client.models.list()
    assert client.models.retrieve(model.id) == model
    data = picture("blue")
    uri = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    texts = ["a photo of a cat", "dog"]
    answer = client.embeddings.create(model=model.id, input=[texts[0], uri, texts[1]], **encoding)
    assert [entry.index for entry in answer.data] == [0, 1, 2]
    rows = np.array([entry.embedding for entry in answer.data], dtype=np.float32)
    (batch,) = embed_images([ImageRef("b.png", content=data)], session)
    assert np.abs(rows[[0, 2]] - session.encoder.encode_text(texts)).max() < 1e-5
    assert np.abs(rows[1] - batch.features[0]).max() < 1e-5
    assert answer.usage.prompt_tokens == sum(session.encoder.token_counts(texts)) > 4
    one = client.embeddings.create(model=model.id, input="cat")
    assert len(one.data) == 1 and len(one.data[0].embedding) == session.facts.embed_dim


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"input": [[1, 2, 3]]}, openai.UnprocessableEntityError, "tokens are another model's"),
        ({"input": "dog " * 200}, openai.UnprocessableEntityError, "sees only the first"),
        ({"input": ["cat", "o" * 60_000]}, openai.UnprocessableEntityError, "more than 1,000 signs"),
        ({"dimensions": 7}, openai.UnprocessableEntityError, "embeddings have"),
        ({"model": "text-embedding-3-small"}, openai.NotFoundError, "isn't here"),
        ({"input": "data:image/png;base64,AAAA"}, openai.UnprocessableEntityError, "not an image"),
        ({"input": ["cat", "data:image/png;base64,!"]}, openai.UnprocessableEntityError, "input.1: no base64"),
        ({"input": []}, openai.UnprocessableEntityError, "input: "),
    ],
)
def test_openais_client_hears_of_errors(
    client: openai.OpenAI, change: dict[str, Any], kind: type[Exception], says: str
) -> None:
    given: dict[str, Any] = {"model": next(iter(client.models.list())).id, "input": "cat"}
    with pytest.raises(kind, match=says):
        client.embeddings.create(**(given | change))


def test_openais_client_without_the_key(server: Running) -> None:
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="other", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="key is missing or wrong"),
    ):
        client.models.list()


def test_200_pictures_get_what_predict_gives(server: Running, session: Session, tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    paths = []
    for number in range(200):
        height, width = random.integers(20, 200, 2)
        noise = random.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        kind = ("JPEG", "PNG", "WEBP")[number % 3]
        paths.append(tmp_path / f"{number:03}.{kind.lower()}")
        Image.fromarray(noise).resize((int(width), int(height))).save(paths[-1], kind)
    expected = list(Classifier(session, LABELS, scoring=Scoring(top_k=3)).predict(paths))
    rows = []
    sizes = [1, 7, 64, 1, 30, 64, 33]
    assert sum(sizes) == 200
    for size in sizes:  # in requests of many sizes
        batch = paths[len(rows) : len(rows) + size]
        files = [(path.name, path.read_bytes()) for path in batch]
        body, media_type = form(files, label=LABELS, top_k="3")
        status, answer = server.post("/predict", body, Content_Type=media_type, Authorization="Bearer secret")
        assert status == 200
        rows += answer["predictions"]
    for path, row, prediction in zip(paths, rows, expected, strict=True):
        assert row["path"] == path.name and row["error"] is None
        found = {entry["label"]: (entry["score"], entry["similarity"]) for entry in row["top"]}
        for entry in prediction.top:
            assert found[entry.label] == pytest.approx((entry.score, entry.similarity), abs=1e-5)


def test_json_lines_are_the_command_lines(server: Running, session: Session) -> None:
    body = {"images": [{"name": "a.png", "data": base64.b64encode(picture("red")).decode()}], "labels": LABELS}
    headers = {"Accept": "application/jsonl", "Authorization": "Bearer secret"}
    status, found, lines = server.ask("POST", "/predict", body, headers)
    assert status == 200 and found["content-type"].startswith("application/jsonl")
    (row,) = [json.loads(line) for line in io.BytesIO(lines)]
    assert list(row) == ["path", "label", "score", "similarity", "top", "error"] and row["path"] == "a.png"


def test_a_model_of_siglips_kind(tmp_path: Path) -> None:
    save_tokenizer(model := save_model(tmp_path / "siglip", SIGLIP_CONFIG, SIGLIP_PREPROCESS))
    session = Session(ModelSpec(str(model), device="cpu", precision="fp32"), Execution())
    for multi_label in (False, True):
        scoring = Scoring(multi_label=multi_label, threshold=0.0, top_k=2)
        (expected,) = Classifier(session, CLASSNAMES, scoring=scoring).predict([ImageRef("a", content=picture())])
        with served(Session(session.encoder, session.execution)) as server:
            fields = {"label": CLASSNAMES, "top_k": "2", "threshold": "0", "multi_label": str(multi_label)}
            status, answer = server.upload("/predict", [("a", picture())], **fields)
        (row,) = answer["predictions"]
        assert (status, row["label"]) == (200, expected.label)
        assert [e["score"] for e in row["top"]] == pytest.approx([e.score for e in expected.top], abs=1e-5)
