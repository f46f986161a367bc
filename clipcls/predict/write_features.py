"""Write the features of pictures or texts to files, as they come."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from clipcls.embed.images import embed_images
from clipcls.embed.session import Session
from clipcls.embed.texts import embed_texts
from clipcls.embed.watch import Watch
from clipcls.inputs.discover import are_countable, discover
from clipcls.inputs.left_out import LeftOut
from clipcls.inputs.listing import Sources
from clipcls.inputs.parts import Listed
from clipcls.labels.prompts import render
from clipcls.outputs.vectors.origin import FeatureOrigin
from clipcls.outputs.vectors.vector_format import VectorRows
from clipcls.outputs.vectors.write import VectorDestination, open_vectors
from clipcls.predict.error_limit import ErrorLimit
from clipcls.predict.run import RunReport, Tally, count, look_for_one, none_exists, settings_for
from clipcls.records import Label, PromptSet


def write_features(
    session: Session,
    sources: Sources,
    destination: VectorDestination,
    limit: ErrorLimit | None = None,
    stop: Callable[[], bool] = lambda: False,
    watch: Watch | None = None,
) -> RunReport:
    """Write the features of pictures, a row each, in input order; a picture that can't be read has a row without any.

    Features come from the cache where it has them. A folder that is resumed keeps what it holds, and only the pictures
    that it lacks are added. With `sources.part`, rows have an index; see `clipcls.predict.run.run`.

    Args:
        limit: how many pictures may fail; any number by default.
        stop: called after every batch; once it returns True, the run ends with the pictures that the model has begun.
        watch: told how far the run is.

    Raises:
        ModelError: the model can't be loaded.
        StoppedError: the output can't be written, or too many pictures failed.
        UsageError: there are no pictures, none exists, or the output can't be resumed.
    """
    watch = watch or Watch()
    destination = replace(destination, has_index=sources.part is not None)
    left_out, listed = LeftOut(takes_videos=True), Listed()
    images = discover(sources, left_out=left_out, listed=listed)
    if not destination.resume:
        images, exist = look_for_one(images, sources, left_out, listed)
        if not exist:
            raise none_exists(next(images))
    origin = image_origin(session)
    settings = partial(settings_for, sources, lambda: _settings(session, destination))
    with open_vectors(destination, origin, settings) as output:
        before = output.done
        watch.begin((lambda: count(sources)) if are_countable(sources) else None, before.count)
        can_resume = destination.folder is not None
        tally = Tally(limit or ErrorLimit(), watch, (before.count, before.failed), can_resume)
        for batch in embed_images(before.remaining(images), session, stop):
            paths = tuple(image.path for image in batch.images)
            indices = tuple(image.index for image in batch.images if image.index is not None)
            output.sink.write(VectorRows(paths, batch.features, batch.errors, indices or None))
            tally.add(len(paths), [(p, e) for p, e in zip(paths, batch.errors, strict=True) if e is not None])
            if tally.exceeded:
                break
        stopped = stop()
        if sources.part is not None and not (stopped or tally.exceeded):
            output.listing = listed.listing
    if not stopped:
        left_out.report(sources.names)
    return tally.report(sources, stopped or listed.listing.count > 0)


def write_text_features(
    session: Session, texts: Sequence[str], prompts: PromptSet, destination: VectorDestination
) -> None:
    """Write the features of texts, a row each, averaged over the templates that each text is filled into.

    Raises:
        ModelError: the model can't be loaded.
        StoppedError: the output can't be written.
        UsageError: with `strict_prompts`, a prompt is over the context length.
    """
    filled = [render(Label(text, (text,)), prompts) for text in texts]
    embedded = embed_texts(filled, session, strict=session.execution.strict_prompts)
    origin = text_origin(session, prompts.templates)
    with open_vectors(destination, origin, dict) as output:
        features = np.stack([text.features for text in embedded])
        output.sink.write(VectorRows(tuple(texts), features, (None,) * len(texts)))


def image_origin(session: Session) -> FeatureOrigin:
    """Return what makes the features of pictures in a session."""
    return _origin(session, of="images", preprocess=asdict(session.facts.preprocess), decode=session.execution.decode)


def text_origin(session: Session, templates: Sequence[str]) -> FeatureOrigin:
    """Return what makes the features of texts in a session."""
    return _origin(session, of="texts", templates=tuple(templates))


def _origin(session: Session, **more: object) -> FeatureOrigin:
    facts = session.facts
    is_path = os.path.exists(session.name)  # noqa: PTH110, names may be odd
    return FeatureOrigin(
        model=os.path.abspath(session.name) if is_path else session.name,  # noqa: PTH100
        fingerprint=session.fingerprint.hex(),
        weights=session.weights,
        embed_dim=facts.embed_dim,
        precision=facts.precision + facts.calibration,
        runtime=facts.runtime,
        logit_scale=facts.logit_scale,
        logit_bias=facts.logit_bias,
        **more,  # type: ignore[arg-type]
    )


def _settings(session: Session, destination: VectorDestination) -> dict[str, object]:
    """Return all that rows depend on besides the pictures, by the names of the options, in JSON's types."""
    return {
        "--model": session.fingerprint.hex(),
        "--precision": session.facts.precision + session.facts.calibration,
        "--decode": session.execution.decode,
        "--dtype": destination.dtype,
        "--max-pixels": session.execution.max_pixels,
        "--max-bytes": session.execution.max_bytes,
    }
