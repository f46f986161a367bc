"""The known models under short names, with the facts that help to choose one. Imports no torch.

Published accuracies are zero-shot top-1 on ImageNet-1k, as their sources state them; clipcls measured none.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

_OPEN_CLIP_RESULTS = "open_clip docs/openclip_results.csv"
DEFAULT_MODEL = "photo"
#: Where the embedded models are, each in a folder of its name.
EMBEDDED = Path(__file__).parent
#: Names of weights in a repository, in open_clip's order of preference; safetensors hold no code.
WEIGHT_NAMES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth",
    "model.safetensors",
    "pytorch_model.bin",
    "pytorch_model.pth",
    "model.pth",
)
#: The file that every Hugging Face tokenizer has.
TOKENIZER_CONFIG = "tokenizer_config.json"


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """An alias of a model.

    Attributes:
        model: what the alias stands for, in the form `--model` takes; a folder for an embedded model.
        parameters: parameters of both towers, in millions.
        imagenet: published zero-shot top-1 accuracy on ImageNet-1k in percent; None where there is none.
        extra: the extra of clipcls that the model needs.
        repo: where its weights are on the hub; empty for an embedded model.
        tokenizer_repo: where its tokenizer is on the hub; empty for CLIP's own.
    """

    alias: str
    model: str
    purpose: str
    licence: str
    parameters: float
    speed: str
    imagenet: float | None = None
    source: str = ""
    extra: str | None = None
    repo: str = ""
    tokenizer_repo: str = ""

    @property
    def gigabytes(self) -> float:
        """The size of the download: the weights of these models are float32."""
        return self.parameters * 4 / 1000 if self.repo else 0.0


# Chosen among open_clip's models with a licence that allows commercial use. `photo` beats ViT-B-16:laion2b (70.2)
# at a third of its image tokens; MobileCLIP and DFN are more accurate for their size, but for research only.
CATALOG = (
    CatalogEntry(
        alias="photo",
        model="ViT-B-32-256:datacomp_s34b_b86k",
        repo="laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K",
        purpose="photographs; the default",
        licence="MIT",
        parameters=151,
        speed="fast",
        imagenet=72.8,
        source=_OPEN_CLIP_RESULTS,
    ),
    CatalogEntry(
        alias="fast",
        model="ViT-B-32:datacomp_xl_s13b_b90k",
        repo="laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
        purpose="photographs, a quarter fewer image tokens",
        licence="MIT",
        parameters=151,
        speed="fastest",
        imagenet=69.2,
        source=_OPEN_CLIP_RESULTS,
    ),
    CatalogEntry(
        alias="accurate",
        model="ViT-L-14:datacomp_xl_s13b_b90k",
        repo="laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K",
        purpose="photographs, when a GPU or time is at hand",
        licence="MIT",
        parameters=428,
        speed="slow on CPU",
        imagenet=79.2,
        source=_OPEN_CLIP_RESULTS,
    ),
    CatalogEntry(
        alias="multilingual",
        model="ViT-B-16-SigLIP2-256:webli",
        repo="timm/ViT-B-16-SigLIP2-256",
        tokenizer_repo="timm/ViT-B-16-SigLIP2-256",
        purpose="photographs, labels in many languages",
        licence="Apache-2.0",
        parameters=375,
        speed="medium",
        imagenet=79.1,
        source="SigLIP 2, arXiv:2502.14786, table 1",
        extra="siglip",
    ),
    CatalogEntry(
        alias="everyday",
        model=str(EMBEDDED / "everyday"),
        purpose="photographs of everyday things, about a thousand kinds; small, embedded, needs no download",
        licence="Apache-2.0",
        parameters=17.1,
        speed="fast",
    ),
    CatalogEntry(
        alias="pictogram",
        model=str(EMBEDDED / "pictogram"),
        purpose="pictograms, not photographs: icons, stickers, emoji; small, embedded, needs no download",
        licence="Apache-2.0",
        parameters=9.6,
        speed="fastest",
    ),
)


def find(alias: str) -> CatalogEntry | None:
    """Return the entry of an alias, or None."""
    return next((entry for entry in CATALOG if entry.alias == alias), None)


def full_name(name: str) -> str:
    """Return what an alias stands for; any other name unchanged."""
    entry = find(name)
    return entry.model if entry else name


def model_folder(name: str) -> Path | None:
    """Return the folder that a model's name stands for, which may not exist if the name says that it is one."""
    name = full_name(name)
    folder = Path(name.removeprefix("local-dir:"))
    return folder if name and (folder.is_dir() or name.startswith("local-dir:")) else None


def suggestions(name: str, known: list[str]) -> list[str]:
    """Return up to three known names that resemble `name`."""
    return get_close_matches(name, known, n=3, cutoff=0.5)
