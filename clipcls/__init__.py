"""Zero-shot image classification with CLIP and SigLIP models.

    from clipcls import Classifier, Session
    with Session("photo") as session:
        for prediction in Classifier(session, ["cat", "dog", "truck"]).predict(["images/"]):
            print(prediction.path, prediction.label, prediction.score)

Names are imported when they are used (PEP 562), so that `import clipcls` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipcls.embed.execution import Execution
    from clipcls.embed.session import Session
    from clipcls.errors import ClipclsError, ImageError, ModelError, StoppedError, UsageError
    from clipcls.inputs.discover import discover
    from clipcls.inputs.listing import Sources
    from clipcls.inputs.video import Sampling
    from clipcls.labels.prompts import load_prompt_set, templates_set
    from clipcls.models.encoder import Encoder, load_encoder
    from clipcls.outputs.destination import Destination
    from clipcls.outputs.vectors import read_vectors
    from clipcls.outputs.vectors.write import VectorDestination
    from clipcls.predict.classifier import Classifier
    from clipcls.predict.duplicates import find_duplicates
    from clipcls.predict.error_limit import ErrorLimit
    from clipcls.predict.pool import PicturePool, embed_pool, stored_pool
    from clipcls.predict.ranking import Scoring, Unknown
    from clipcls.predict.report import ReportPlan, write_report
    from clipcls.predict.run import RunReport, run
    from clipcls.predict.search import search
    from clipcls.predict.taught import read_taught
    from clipcls.predict.write_features import write_features
    from clipcls.records import Duplicate, Hit, ImageRef, Label, ModelSpec, Prediction, PromptSet, ScoredLabel

_HOMES = {
    "Classifier": "predict.classifier",
    "ClipclsError": "errors",
    "Destination": "outputs.destination",
    "Duplicate": "records",
    "Encoder": "models.encoder",
    "ErrorLimit": "predict.error_limit",
    "Execution": "embed.execution",
    "Hit": "records",
    "ImageError": "errors",
    "ImageRef": "records",
    "Label": "records",
    "ModelError": "errors",
    "ModelSpec": "records",
    "PicturePool": "predict.pool",
    "Prediction": "records",
    "PromptSet": "records",
    "ReportPlan": "predict.report",
    "RunReport": "predict.run",
    "Sampling": "inputs.video",
    "ScoredLabel": "records",
    "Scoring": "predict.ranking",
    "Session": "embed.session",
    "Sources": "inputs.listing",
    "StoppedError": "errors",
    "Unknown": "predict.ranking",
    "UsageError": "errors",
    "VectorDestination": "outputs.vectors.write",
    "discover": "inputs.discover",
    "embed_pool": "predict.pool",
    "find_duplicates": "predict.duplicates",
    "load_encoder": "models.encoder",
    "load_prompt_set": "labels.prompts",
    "read_taught": "predict.taught",
    "read_vectors": "outputs.vectors",
    "run": "predict.run",
    "search": "predict.search",
    "stored_pool": "predict.pool",
    "templates_set": "labels.prompts",
    "write_features": "predict.write_features",
    "write_report": "predict.report",
}

__all__ = [
    "Classifier",
    "ClipclsError",
    "Destination",
    "Duplicate",
    "Encoder",
    "ErrorLimit",
    "Execution",
    "Hit",
    "ImageError",
    "ImageRef",
    "Label",
    "ModelError",
    "ModelSpec",
    "PicturePool",
    "Prediction",
    "PromptSet",
    "ReportPlan",
    "RunReport",
    "Sampling",
    "ScoredLabel",
    "Scoring",
    "Session",
    "Sources",
    "StoppedError",
    "Unknown",
    "UsageError",
    "VectorDestination",
    "discover",
    "embed_pool",
    "find_duplicates",
    "load_encoder",
    "load_prompt_set",
    "read_taught",
    "read_vectors",
    "run",
    "search",
    "stored_pool",
    "templates_set",
    "write_features",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"clipcls.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'clipcls' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
