"""clipcls's own dialect: what may be asked, and what is answered."""

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipcls.embed.execution import Execution
from clipcls.embed.images import embed_images
from clipcls.embed.session import Session
from clipcls.evaluate.teach import TeachPlan, teach
from clipcls.inputs.labelled.read import read_truth
from clipcls.labels.label_files import make_label
from clipcls.labels.prompts import templates_set
from clipcls.outputs.vectors.vector_format import StoredVectors
from clipcls.predict.classifier import Classifier
from clipcls.predict.ranking import Scoring
from clipcls.predict.write_features import image_origin
from clipcls.records import ImageRef, ModelSpec
from clipcls.serve.service import ServiceSettings
from serving import Running, picture, served

COLOURS = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def session(tiny_model: Path) -> Session:
    return Session(ModelSpec(str(tiny_model), device="cpu", precision="fp32"), Execution())


def features_of(session: Session, data: bytes) -> np.ndarray[Any, Any]:
    (batch,) = embed_images([ImageRef("a", content=data)], session)
    return batch.features[0]


@pytest.fixture(scope="module")
def server(tiny_model: Path, session: Session) -> Iterator[Running]:
    rows = np.stack([features_of(session, picture(colour)) for colour in COLOURS])
    stored = StoredVectors([f"{colour}.png" for colour in COLOURS], (rows,), image_origin(session))
    settings = ServiceSettings(
        labels=tuple(map(make_label, ["cat", "dog"])), prompts=templates_set(["a {}"]), features=(stored, "colours.npz")
    )
    with served(tiny_model, settings) as running:
        yield running


def expected(session: Session, data: bytes, labels: list[str], scoring: Scoring, template: str = "a {}") -> Any:
    (prediction,) = Classifier(session, labels, [template], scoring).predict([ImageRef("a.png", content=data)])
    return prediction


def test_the_servers_labels_and_prompts_are_those_of_requests_without(server: Running, session: Session) -> None:
    status, answer = server.upload("/predict", [("a.png", picture())])
    (row,) = answer["predictions"]
    prediction = expected(session, picture(), ["cat", "dog"], Scoring())
    assert (status, row["label"], answer["warnings"]) == (200, prediction.label, [])
    assert row["score"] == pytest.approx(prediction.score, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "scoring"),
    [
        ({"score": "cosine"}, Scoring("cosine")),
        ({"multi_label": "true", "threshold": "0.2"}, Scoring(multi_label=True, threshold=0.2)),
        ({"top_k": "2", "min_margin": "0.9"}, Scoring(top_k=2, min_margin=0.9)),
        ({"threshold": "1"}, Scoring(threshold=1.0)),
    ],
)
def test_fields_are_the_options(server: Running, session: Session, fields: dict[str, Any], scoring: Scoring) -> None:
    labels = {"labels": "red, blue", "label": "green, of sorts", "template": "the {}"}
    status, answer = server.upload("/predict", [("a.png", picture())], **labels, **fields)
    (row,) = answer["predictions"]
    prediction = expected(session, picture(), ["red", "blue", "green, of sorts"], scoring, "the {}")
    assert (status, row["label"]) == (200, prediction.label)
    assert [entry["label"] for entry in row["top"]] == [entry.label for entry in prediction.top]
    assert [entry["score"] for entry in row["top"]] == pytest.approx([e.score for e in prediction.top], abs=1e-5)


def test_unknown_pictures_and_explanations(server: Running) -> None:
    status, answer = server.upload("/predict", [("a.png", picture())], unknown="true", min_known="1", explain="true")
    (row,) = answer["predictions"]
    assert status == 200 and row["label"] is None and 0 <= row["known"] < 1
    assert {entry["prompt"] for entry in row["explain"]["prompts"]} == {"a cat", "a dog"}


def test_one_picture_is_a_body_of_its_own(server: Running) -> None:
    status, answer = server.post("/predict?labels=red,blue&top_k=2&label=a,b", picture(), Content_Type="image/png")
    assert status == 200
    assert {entry["label"] for entry in answer["predictions"][0]["top"]} < {"red", "blue", "a,b"}


def test_pictures_in_json(server: Running) -> None:
    plain = base64.b64encode(picture()).decode()
    wrapped = "\n".join(plain[place : place + 76] for place in range(0, len(plain), 76))
    images = [plain, wrapped, f"data:image/png;base64,{plain}", {"name": "d.png", "data": plain}]
    status, answer = server.post("/predict", {"images": images, "labels": "red,blue"})
    assert status == 200
    rows = answer["predictions"]
    assert [row["path"] for row in rows] == ["images.0", "images.1", "images.2", "d.png"]
    assert len({row["score"] for row in rows}) == 1
    assert server.post("/predict", {"images": plain, "labels": "red,blue"})[1]["predictions"] == rows[:1]


def test_fields_of_the_address_go_with_json(server: Running) -> None:
    images = {"images": [base64.b64encode(picture()).decode()]}
    status, answer = server.post("/predict?label=red&labels=blue,green&top_k=3", images)
    assert status == 200
    assert {entry["label"] for entry in answer["predictions"][0]["top"]} == {"red", "blue", "green"}
    status, answer = server.post("/predict?top_k=2", images | {"top_k": 1})
    assert (status, answer["error"]["param"]) == (422, "top_k")
    assert server.post("/predict?topk=2", images)[1]["error"]["message"] == "topk: no such field; /docs names them."


def test_of_several_pictures_a_bad_one_is_a_row(server: Running) -> None:
    files = [("a.png", picture()), ("b.png", picture()[:60]), ("c.txt", b"no picture"), ("d.png", picture("blue"))]
    status, answer = server.upload("/predict", files)
    assert status == 200
    errors = [row["error"] for row in answer["predictions"]]
    assert errors[0] is errors[3] is None and errors[1].startswith(("truncated", "damaged"))
    assert errors[2] == "not an image in a format Pillow reads"
    deadline = time.monotonic() + 5
    while not server.lines[-1].endswith("4 pictures (2 failed)"):  # it is written behind the answer
        assert time.monotonic() < deadline
        time.sleep(0.01)
    server.upload("/predict", [("a.png", picture())])
    while not server.lines[-1].endswith(" 1 picture"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("body", "param", "says"),
    [
        ({}, "images", "no picture"),
        ({"images": ["!"]}, "images.0", "images.0: no base64"),
        ({"images": ["data:image/png,abc"]}, "images.0", "isn't base64"),
        ({"images": ["https://example.org/a.png"]}, "images.0", "this server fetches none"),
        ({"images": [3]}, "images", "images.0"),
        ({"images": [""] * 65}, "images", "65 pictures; a request may have 64"),
        ({"lables": ["cat"]}, "lables", "no such field"),
        ({"top_k": 0}, "top_k", "top_k: Input should be greater than or equal to 1, not 0"),
        ({"labels": []}, "labels", "at least 1 item after validation, not 0."),
        ({"labels": ["cat", "Cat"]}, "labels", "Labels 'cat' and 'Cat' are the same"),
        ({"labels": "cat,,dog"}, "labels", "an empty label"),
        ({"labels": ["cat"], "threshold": 3}, "threshold", "threshold must lie between 0 and 1 for score softmax"),
        ({"score": "magic"}, "score", "Unknown score 'magic'. Use one of: softmax"),
        ({"multi_label": True, "score": "softmax"}, "multi_label", "use score sigmoid"),
        ({"prompts": "/etc/passwd"}, "prompts", "no such set. Use one of: chinese"),
        ({"prompts": "simple", "template": "a {}"}, "prompts", "Give prompts or template, not both"),
        ({"template": "no place"}, "template", "{}"),
        ({"min_known": 0.5}, "min_known", "min_known is for unknown"),
        ([1], None, "the body: expected an object with fields"),
    ],
)
def test_a_wrong_field_is_named(server: Running, body: Any, param: str | None, says: str) -> None:
    if isinstance(body, dict) and "images" not in body and body:
        body = body | {"images": [base64.b64encode(picture()).decode()]}
    status, answer = server.post("/predict", body)
    assert status == 422 and says in answer["error"]["message"] and answer["error"]["param"] == param
    assert answer["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("data", "status", "says"),
    [
        (b"", 422, "a.png: empty file."),
        (b"no picture", 415, "a.png: not an image in a format Pillow reads."),
        (picture()[:60], 422, "a.png: "),
        (picture(size=(20, 3000)), 413, "20 × 3,000 pixels, more than the limit of 50,000"),
        (picture() + bytes(100_000), 413, "bytes, more than the limit of 100,000"),
    ],
)
def test_a_lone_picture_that_cant_be_read_is_the_requests_error(
    tiny_model: Path, session: Session, data: bytes, status: int, says: str
) -> None:
    limited = Session(session.encoder, replace(session.execution, max_pixels=50_000, max_bytes=100_000))
    with served(limited) as server:
        found, answer = server.upload("/predict", [("a.png", data)], labels="a,b")
        assert found == status and says in answer["error"]["message"] and answer["error"]["param"] == "images"


def test_bodies_of_other_kinds(server: Running) -> None:
    status, answer = server.post("/predict", b"<xml/>", Content_Type="text/xml")
    assert status == 415 and answer["error"]["param"] == "Content-Type"
    status, answer = server.post("/predict", b"{", Content_Type="application/json")
    assert status == 422 and answer["error"]["message"].startswith("The body is no JSON")
    status, answer = server.post("/predict", b" {")
    assert status == 422 and answer["error"]["message"].startswith("The body is no JSON")
    assert server.post("/predict", picture())[1]["predictions"][0]["path"] == "image"
    status, answer = server.post("/predict", b"x", Content_Type="multipart/form-data")
    assert status == 422 and answer["error"]["message"].startswith("The form can't be read")
    status, _, answer = server.ask("GET", "/predict")
    assert status == 405 and "/docs" in answer["error"]["message"]
    assert server.ask("GET", "/nothing")[0] == 404


def test_without_labels_anywhere(tiny_model: Path, session: Session) -> None:
    with served(Session(session.encoder, session.execution)) as server:
        status, answer = server.upload("/predict", [("a.png", picture())])
        assert status == 422 and answer["error"]["param"] == "labels"
        assert server.ask("GET", "/models")[2]["models"][0]["labels"] is None


def test_what_examples_taught_answers_requests_without_labels(session: Session, tmp_path: Path) -> None:
    for colour in ("red", "blue"):
        (tmp_path / colour).mkdir()
        for width in range(20, 26):
            (tmp_path / colour / f"{width}.png").write_bytes(picture(colour, (width, 20)))
    taught = teach(read_truth([str(tmp_path)]), TeachPlan(session.encoder, session.execution)).taught
    with served(Session(session.encoder, session.execution), ServiceSettings(taught)) as server:
        assert server.ask("GET", "/models")[2]["models"][0]["labels"] == ["blue", "red"]
        for labels in ({}, {"labels": "cat,dog"}):
            classifier = Classifier(session, ["cat", "dog"] if labels else taught, scoring=Scoring(top_k=2))
            (wanted,) = classifier.predict([ImageRef("a.png", content=picture())])
            _, answer = server.upload("/predict", [("a.png", picture())], top_k="2", score="softmax", **labels)
            found = {entry["label"]: entry["score"] for entry in answer["predictions"][0]["top"]}
            assert found == pytest.approx({entry.label: entry.score for entry in wanted.top}, abs=1e-5)
        status, answer = server.upload("/predict", [("a.png", picture())], template="a {}")
        assert status == 422 and "has prompts of its own" in answer["error"]["message"]


def test_embed(server: Running, session: Session) -> None:
    status, answer = server.upload("/embed", [("a.png", picture()), ("b", b"x")], texts=["cat", "dog"], template="a {}")
    assert status == 200
    first, second = answer["images"]
    assert np.abs(np.array(first["features"]) - features_of(session, picture())).max() < 1e-5
    assert second["features"] is None and second["error"]
    assert [entry["text"] for entry in answer["texts"]] == ["cat", "dog"]
    found = np.array([entry["features"] for entry in answer["texts"]])
    assert np.abs(found - session.encoder.encode_text(["a cat", "a dog"])).max() < 1e-5
    status, answer = server.post("/embed", {"texts": "dog " * 100})
    assert status == 200 and "sees only the first" in answer["warnings"][0]
    assert server.post("/embed", {})[0] == server.post("/embed", {"template": "a {}"})[0] == 422


def test_search(server: Running) -> None:
    status, answer = server.upload("/search", [("mine", picture("green"))], top_k="2")
    assert status == 200 and answer["hits"][0]["path"] == "green.png" and len(answer["hits"]) == 2
    status, answer = server.post("/search", {"query": "red"})
    assert status == 200 and len(answer["hits"]) == 3 and all(0 <= hit["score"] <= 1 for hit in answer["hits"])
    assert server.post("/search", {"query": str(Path(__file__))})[0] == 200  # a text: no file is read
    assert server.post("/search", {})[1]["error"]["param"] == "query"


def test_search_without_features(tiny_model: Path, session: Session) -> None:
    with served(Session(session.encoder, session.execution)) as server:
        status, answer = server.post("/search", {"query": "red"})
        assert status == 404 and "--features" in answer["error"]["message"]


def test_models_and_documentation(server: Running, session: Session) -> None:
    _, _, answer = server.ask("GET", "/models")
    (model,) = answer["models"]
    assert model["labels"] == ["cat", "dog"] and model["embed_dim"] == session.facts.embed_dim and answer["search"]
    _, _, specification = server.ask("GET", "/openapi.json")
    assert specification["openapi"] == "3.1.0"
    text = json.dumps(specification)
    for name in {text[place:].split('"', 1)[0] for place in _places(text, "#/components/schemas/")}:
        assert name.removeprefix("#/components/schemas/") in specification["components"]["schemas"]
    status, headers, page = server.ask("GET", "/docs")
    assert status == 200 and "default-src 'none'" in headers["content-security-policy"]
    for path in specification["paths"]:
        assert f" {path}</code>".encode() in page
    assert f"curl {server.url}/models".encode() in page


def _places(text: str, part: str) -> list[int]:
    return [place for place in range(len(text)) if text.startswith(part, place)]


def test_health_readiness_and_figures(server: Running) -> None:
    assert server.ask("GET", "/health")[2] == {"status": "ok"}
    assert server.ask("GET", "/ready")[0] == 200
    server.upload("/predict", [("a.png", picture("navy"))])
    _, headers, text = server.ask("GET", "/metrics")
    lines = dict(line.rsplit(" ", 1) for line in text.decode().splitlines() if not line.startswith("#"))
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert float(lines['clipcls_requests_total{path="/health",status="200"}']) >= 1
    assert float(lines["clipcls_batch_pictures_count"]) >= 1 and lines["clipcls_ready"] == "1.0"
    assert lines["clipcls_waiting_pictures"] == "0.0"


def test_before_the_model_is_loaded(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service, "is_ready", False)
    for method, path in [("GET", "/ready"), ("GET", "/models"), ("POST", "/predict"), ("POST", "/v1/embeddings")]:
        status, headers, answer = server.ask(method, path, {} if method == "POST" else None)
        assert (status, headers["retry-after"]) == (503, "2") and "being loaded" in answer["error"]["message"]
    assert server.ask("GET", "/health")[0] == 200


def test_label_sets_are_embedded_once(server: Running, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = server.service.session.encoder
    asked: list[str] = []
    original = encoder.encode_text

    def counting(texts: Any) -> Any:
        asked.extend(texts)
        return original(texts)

    monkeypatch.setattr(encoder, "encode_text", counting)
    for more in ({}, {"threshold": "0.9"}, {"top_k": "2", "min_margin": "0.1"}):
        assert server.upload("/predict", [("a.png", picture())], labels="lion,tiger", **more)[0] == 200
    assert asked == ["a lion", "a tiger"]


def test_pages_of_allowed_origins_may_read_answers(session: Session) -> None:
    allowed = "https://example.org"
    with served(session, app_settings={"api_key": "secret", "origins": (allowed,)}) as server:
        before = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        status, headers, _ = server.ask("OPTIONS", "/predict", headers=before | {"Origin": allowed})
        assert status == 200 and headers["access-control-allow-origin"] == allowed
        assert server.ask("OPTIONS", "/predict", headers=before | {"Origin": "https://example.com"})[0] == 400
        status, headers, _ = server.ask("POST", "/predict", {}, {"Origin": allowed})
        assert status == 401 and headers["access-control-allow-origin"] == allowed


def test_pages_from_elsewhere_may_not_read_answers(server: Running) -> None:
    _, headers, _ = server.ask("GET", "/models", headers={"Origin": "https://example.org"})
    assert "access-control-allow-origin" not in headers
