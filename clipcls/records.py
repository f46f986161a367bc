"""The data that modules hand to one another: frozen, without behaviour beyond derived values."""

import os
import time
from dataclasses import dataclass
from typing import Literal

Precision = Literal["fp32", "bf16", "fp16", "int8"]
Runtime = Literal["torch", "openvino"]
Decode = Literal["fast", "exact"]
OnError = Literal["skip", "stop"]
Engine = Literal["local", "ray"]
SortMethod = Literal["copy", "hardlink", "symlink", "move"]
Likeness = Literal["bytes", "picture", "scene"]
Per = Literal["frame", "segment", "video", "occurs"]
ContainerKind = Literal["shard", "table", "video"]

# A file that changes twice within a tick of its file system's clock looks unchanged: FAT's ticks are 2 seconds.
RACY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class FileStamp:
    """A file's size, times and inode: a file with an equal stamp is taken to be unchanged.

    Caches and plans keep its text form.

    Attributes:
        size: in bytes; not enough alone, since models of one architecture have one size.
        mtime_ns: when the content last changed; in system images all files may have the same.
        ctime_ns: when content or metadata last changed, in nanoseconds.
        inode: the inode, or another number that tells files apart.
    """

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileStamp":
        """Return the stamp of a file whose status is known."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> "FileStamp | None":
        """Return the stamp of the file at a path; None where there is no file, or it can't be examined."""
        try:
            return cls.of(os.stat(path))  # noqa: PTH116 - making a Path takes longer than the call
        except (OSError, ValueError):
            return None

    @classmethod
    def parse(cls, text: str) -> "FileStamp":
        """Return the stamp whose text form this is.

        Raises:
            ValueError: the text isn't a stamp's.
        """
        size, mtime_ns, ctime_ns, inode = map(int, text.split())
        return cls(size, mtime_ns, ctime_ns, inode)

    def __str__(self) -> str:
        """Return the text form, four numbers."""
        return f"{self.size} {self.mtime_ns} {self.ctime_ns} {self.inode}"

    def is_settled(self, seen: float | None = None) -> bool:
        """Tell whether the file was old enough when the stamp was taken, so that a later change will alter the stamp.

        Args:
            seen: when the stamp was taken, in Unix seconds; None for now, which is too lenient by the time passed
                since.
        """
        moment = time.time() if seen is None else seen
        return moment - max(self.mtime_ns, self.ctime_ns) / 1e9 >= RACY_SECONDS


@dataclass(frozen=True, slots=True)
class Label:
    """One answer that `predict` may give.

    Attributes:
        name: what is shown, as the user wrote it.
        texts: what the templates are filled with: the name in plain words, or its synonyms.
        prompts: complete prompts; if there are any, no template is used for this label.
    """

    name: str
    texts: tuple[str, ...]
    prompts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Templates with one placeholder each; the embeddings of their prompts are averaged.

    Attributes:
        by_script: fill those with Chinese or Japanese signs only with labels that have some, the others only with
            other labels, as training does.
    """

    name: str
    templates: tuple[str, ...]
    description: str = ""
    by_script: bool = False


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """How a decoded picture becomes the model's input, in open_clip's terms.

    Attributes:
        size: height and width in pixels.
        mean: per channel, of values in 0 to 1.
        std: per channel, of values in 0 to 1.
        resize_mode: `shortest` (resize, then crop the centre), `longest` (resize, then pad), `squash`.
        fill_color: the grey value of the padding, 0 to 255.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    fill_color: int = 0


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as the user asked for it; nothing in it has been looked up yet.

    Attributes:
        name: an alias, `NAME:TAG`, `hf-hub:ORG/REPO`, a model folder or a weights file.
        arch: open_clip's architecture name, for a weights file only.
        preprocess: `openai`, `imagenet`, `siglip` or a JSON file, for a weights file only.
    """

    name: str
    arch: str | None = None
    preprocess: str | None = None
    device: str = "auto"
    precision: str = "auto"
    runtime: str = "auto"


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What can be known of a model without opening it.

    Attributes:
        name: as the user asked for it.
        fingerprint: SHA-256 of all that its features depend on: weights, configuration, tokenizer files.
        device: such as `cpu` or `cuda:1`.
        logit_scale: in log space.
        logit_bias: None for a model that wasn't trained with the sigmoid loss.
        context_length: tokens a prompt may have, its start and end included.
        embed_dim: of the features.
        words: a folder that lists the words of the training captions; None where the model doesn't say.
        runtime: what computes the features.
        calibration: names the pictures that an int8 model was quantised on; empty in other precisions.
        weights: SHA-256 of the weights file, in hexadecimal digits; empty where nothing could be kept of it.
    """

    name: str
    fingerprint: bytes
    device: str
    precision: Precision
    preprocess: Preprocessing
    logit_scale: float
    logit_bias: float | None
    context_length: int
    embed_dim: int
    words: str | None = None
    runtime: Runtime = "torch"
    calibration: str = ""
    weights: str = ""

    @property
    def numbers(self) -> str:
        """What the features' last digits depend on: the precision, and the runtime unless that is torch."""
        return self.precision if self.runtime == "torch" else f"{self.precision} {self.runtime}{self.calibration}"


@dataclass(frozen=True, slots=True)
class InputPart:
    """One of several equal shares of a job's inputs, each of which is a run of its own.

    Attributes:
        number: from 1.
        count: the number of parts.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "InputPart":
        """Return the part whose text form this is, such as `3/16`.

        Raises:
            ValueError: the text isn't a part's.
        """
        number, count = (int(figure) if figure.isdecimal() else 0 for figure in text.split("/"))
        if not 1 <= number <= count:
            raise ValueError(f"{text}: no part")
        return cls(number, count)

    def __str__(self) -> str:
        """Return the text form."""
        return f"{self.number}/{self.count}"


@dataclass(frozen=True, slots=True)
class Listing:
    """What all inputs of a job were, those of its other parts included.

    Attributes:
        count: the number of pictures, shards and Parquet tables that the inputs named.
        digest: BLAKE2b of their paths in order, in hexadecimal digits.
    """

    count: int
    digest: str


@dataclass(frozen=True, slots=True)
class Span:
    """A picture inside a larger file that isn't compressed, such as a tar shard.

    Attributes:
        file: path of the larger file.
        offset: of the picture's first byte.
        size: in bytes.
        stamp: the larger file's, taken when it was listed.
    """

    file: str
    offset: int
    size: int
    stamp: FileStamp


@dataclass(frozen=True, slots=True)
class Address:
    """A picture on the web, which may be fetched.

    Attributes:
        url: `http://…` or `https://…`.
    """

    url: str


@dataclass(frozen=True, slots=True)
class Stored:
    """A picture in a store such as S3, at the address that is its `ImageRef`'s path.

    Attributes:
        size: in bytes; None where the store hasn't told it.
        stamp: None where a change couldn't be noticed.
        is_known: whether the store has been asked.
    """

    size: int | None = None
    stamp: FileStamp | None = None
    is_known: bool = False


@dataclass(frozen=True, slots=True)
class Embedded:
    """A picture that a Parquet table holds.

    Attributes:
        table: the table's path, or its address in a store.
        row: counted from 0.
    """

    table: str
    column: str
    row: int


@dataclass(frozen=True, slots=True)
class Frame:
    """The frame of a video that is shown at a time.

    Times are in milliseconds from the video's start.

    Attributes:
        video: path of the video.
        time: when the frame is shown.
        until: the time of the next frame that is taken, or the video's end.
        stamp: the video's, taken when it was listed.
        decoder: names what decodes it; another version may give other pixels.
    """

    video: str
    time: int
    until: int
    stamp: FileStamp
    decoder: str


@dataclass(frozen=True, slots=True)
class Container:
    """A shard, a Parquet table or a video that hasn't been opened."""

    kind: ContainerKind


@dataclass(frozen=True, slots=True)
class ImageRef:
    """One input, in input order.

    Attributes:
        path: as found, and as results show it; bytes that aren't UTF-8 are kept as surrogates (`os.fsdecode`).
        error: why it can't be opened, if that is known beforehand (such as a name that doesn't exist).
        content: where the picture is, or the bytes of its file; None for the file at `path`. A container isn't a
            picture, but holds some (`clipcls.inputs.discover.expand`).
        index: place in the inputs, from 0, if only a part of them is read; pictures of a container share its place.
    """

    path: str
    error: str | None = None
    content: "bytes | Span | Address | Stored | Embedded | Frame | Container | None" = None
    index: int | None = None


@dataclass(frozen=True, slots=True)
class ScoredLabel:
    """A label with its score and its cosine similarity."""

    label: str
    score: float
    similarity: float


@dataclass(frozen=True, slots=True)
class PromptSimilarity:
    """The cosine similarity of an image and one prompt of a label."""

    label: str
    prompt: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """What an answer rests on.

    Attributes:
        margin: score of the best label minus that of the second; None for a single label.
        prompts: those of the best label, then those of the second.
    """

    margin: float | None
    prompts: tuple[PromptSimilarity, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one of several questions about an image.

    Attributes:
        label: the best choice; None if the answer is unknown.
        score: of the best choice, also where the answer is unknown.
        similarity: the cosine of the best choice.
        top: the best choices, best first.
        uncorrected: the best choice before the choices' priors were taken off; None where they weren't.
        several: whether each of `top` is an answer.
    """

    label: str | None
    score: float
    similarity: float
    top: tuple[ScoredLabel, ...]
    uncorrected: ScoredLabel | None = None
    several: bool = False

    @property
    def labels(self) -> tuple[str, ...]:
        """All that was answered; empty if the answer is unknown."""
        if self.label is None:
            return ()
        return tuple(entry.label for entry in self.top) if self.several else (self.label,)


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one image.

    Attributes:
        label: the best label; None if the image is unknown (below the threshold or the margin) or has an error.
        score: of the best label, also where the image is unknown; None with an error.
        similarity: the cosine of the best label; None with an error.
        top: the best labels, best first.
        error: why there is no answer.
        explanation: None unless one was asked for.
        index: rises in input order; None except in runs on a cluster, and of a part of the inputs.
        known: the share of the picture's likeness that falls on the labels rather than on words for other things, 0
            to 1; None unless it was asked for.
        answers: to each question by its name, where several were asked; None for one that wasn't asked of this image.
            The image's own label, score, similarity and top are empty then.
    """

    path: str
    label: str | None
    score: float | None
    similarity: float | None
    top: tuple[ScoredLabel, ...] = ()
    error: str | None = None
    explanation: Explanation | None = None
    index: int | None = None
    known: float | None = None
    answers: tuple[tuple[str, Answer | None], ...] = ()


@dataclass(frozen=True, slots=True)
class Hit:
    """A picture that a search found.

    Attributes:
        query: as the user wrote it.
        score: what can be cut at, see `clipcls.predict.search`.
        similarity: the cosine of the picture and the query.
    """

    query: str
    path: str
    score: float
    similarity: float


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A picture of a group of duplicates.

    Attributes:
        group: the group's number, from 1.
        kind: what it shares with the picture to keep: the same bytes, the same picture in other bytes, or the same
            scene; of the picture to keep, the least that one of the others shares with it.
        keep: whether it is the picture to keep.
        why: by what the picture to keep was chosen, such as `largest: 4000 × 3000`; empty for the others.
        similarity: the cosine of its features and those of the picture to keep.
        size: of its file, in bytes; None where that isn't known.
    """

    group: int
    kind: Likeness
    path: str
    keep: bool
    why: str
    similarity: float
    size: int | None
