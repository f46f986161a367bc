"""Named augmentations for batches of pictures, as torchvision v2 transforms.

torchvision's own transforms draw one set of parameters for all pictures of a call, or go picture by picture;
those here draw one set per picture and apply them to the batch at once, which is what two cores can afford.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torchvision.transforms import v2

# Every fifth seed is kept for evaluation: no training step draws from one.
HELD_OUT_EVERY = 5


def training_seed(step: int, seed: int) -> int:
    """The augmentation seed of a training step; never one that is held out."""
    groups, rest = divmod(step, HELD_OUT_EVERY - 1)
    return HELD_OUT_EVERY * (groups + 1_000_003 * seed) + rest


def held_out_seed(number: int) -> int:
    """The augmentation seed of an evaluation batch; never one that training uses."""
    return HELD_OUT_EVERY * number + HELD_OUT_EVERY - 1


class PerPicture(v2.Transform):  # type: ignore[misc]  # torchvision has no types
    """A transform of float batches `(n, channels, side, side)` with one set of random parameters per picture.

    Attributes:
        strength: 0 for no change to 1 for the full extent; each picture gets a random share of it.
        generator: where everything random comes from; the global random state stays as it is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.strength = 1.0
        self.generator = torch.Generator()

    def rand(self, *shape: int) -> torch.Tensor:
        """Uniform numbers from 0 to 1."""
        return torch.rand(shape, generator=self.generator)

    def uniform(self, count: int, low: float, high: float) -> torch.Tensor:
        """`(count, 1, 1, 1)` numbers, ready to multiply pictures with."""
        return self.rand(count, 1, 1, 1) * (high - low) + low

    def amounts(self, count: int) -> torch.Tensor:
        """`(count, 1, 1, 1)` shares of the strength."""
        return self.uniform(count, 0.0, self.strength)


class RandomGeometry(PerPicture):
    """Rotates, shears, scales and shifts each picture; never flips.

    Args:
        degrees: largest rotation.
        shear: largest shear, as a tangent.
        scale: smallest and largest size.
        shift: largest shift, as a share of the side.
        side: of the result, in pixels.
    """

    def __init__(self, degrees: float, shear: float, scale: tuple[float, float], shift: float, side: int) -> None:
        super().__init__()
        self.degrees, self.shear, self.scale, self.shift, self.side = degrees, shear, scale, shift, side

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The affine matrices, `(n, 2, 3)`, from output to input coordinates."""
        count = len(flat_inputs[0])
        amount = self.amounts(count).flatten()
        angle = (self.rand(count) * 2 - 1) * math.radians(self.degrees) * amount
        shear = (self.rand(count) * 2 - 1) * self.shear * amount
        low, high = (math.log(limit) for limit in self.scale)
        zoom = torch.exp(-(self.rand(count) * (high - low) + low) * amount)
        aspect = torch.exp((self.rand(count) * 2 - 1) * 0.15 * amount)
        shift = (self.rand(count, 2, 1) * 2 - 1) * 2 * self.shift * amount[:, None, None]
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
        skew = torch.stack([zoom * aspect, shear, torch.zeros(count), zoom / aspect], 1).view(-1, 2, 2)
        return {"matrix": torch.cat([turn @ skew, shift], 2)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Sample the pictures at the matrices; outside is transparent."""
        size = [len(inpt), inpt.shape[1], self.side, self.side]
        grid = functional.affine_grid(params["matrix"], size, align_corners=False)
        return functional.grid_sample(inpt, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


class RandomBackground(PerPicture):
    """Puts transparent pictures (premultiplied RGBA) on a colour, a gradient, soft clouds or plain white."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """The backgrounds, `(n, 3, side, side)`."""
        pictures = flat_inputs[0]
        count, side = len(pictures), pictures.shape[-1]
        # mostly light, because black drawings have no other outline
        light = self.uniform(count, 0.3, 1.0)
        plain = self.rand(count, 3, 1, 1) * (1 - light) + light
        slope, clouds = (v2.functional.resize(self.rand(count, 3, n, n), [side, side]) for n in (2, 5))
        choice = self.rand(count, 1, 1, 1)
        rough = torch.where(choice < 0.75, slope, clouds) * 0.6
        ground = torch.where(choice < 0.5, plain, plain * 0.55 + rough).clamp(0, 1)
        white = self.rand(count, 1, 1, 1) > 0.85 * self.strength
        return {"ground": torch.where(white, torch.ones(()), ground)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """RGBA to RGB."""
        return inpt[:, :3] + params["ground"] * (1 - inpt[:, 3:])


class RandomColour(PerPicture):
    """Changes brightness, contrast, saturation and hue of each picture, and makes some of them grey.

    Args:
        jitter: largest change of brightness, contrast and saturation, as a share.
        hue: largest turn of the hues, as a share of the circle.
        grey: share of grey pictures.
    """

    def __init__(self, jitter: float, hue: float, grey: float) -> None:
        super().__init__()
        self.jitter, self.hue, self.grey = jitter, hue, grey

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Gains per picture, and `(n, 3, 3)` colour matrices."""
        pictures = flat_inputs[0]
        count = len(pictures)
        amount = self.amounts(count)
        gains = [1 + self.uniform(count, -1, 1) * self.jitter * amount for _ in range(3)]
        brightness, contrast, saturation = gains
        grey = self.rand(count, 1, 1, 1) < self.grey * self.strength
        saturation = torch.where(grey, torch.zeros(()), saturation).flatten()
        angle = (self.uniform(count, -1, 1) * self.hue * 2 * math.pi * amount).flatten()
        return {"brightness": brightness, "contrast": contrast, "matrix": _chroma(saturation, angle)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pictures in RGB, `(n, 3, side, side)`."""
        coloured = (params["matrix"] @ inpt.flatten(2)).view_as(inpt)
        mean = coloured.mean((1, 2, 3), keepdim=True)
        return (((coloured - mean) * params["contrast"] + mean) * params["brightness"]).clamp(0, 1)


class RandomDetail(PerPicture):
    """Blurs some pictures, coarsens others, and adds noise to others still.

    Args:
        share: of the pictures for each of the three.
        noise: its standard deviation at the most.
    """

    def __init__(self, share: float, noise: float) -> None:
        super().__init__()
        self.share, self.noise = share, noise

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Which pictures, in a random order, and how much."""
        pictures = flat_inputs[0]
        strength = self.strength
        count = int(len(pictures) * self.share * strength)
        order = torch.randperm(len(pictures), generator=self.generator)
        return {
            "blurred": order[:count],
            "sigma": float(self.rand() * strength * 1.2 + 0.3),
            "coarse": order[count : 2 * count],
            "side": int(pictures.shape[-1] * (1 - float(self.rand()) * 0.6 * strength)),
            "noisy": order[2 * count : 3 * count],
            "noise": torch.randn(count, *pictures.shape[1:], generator=self.generator)
            * self.uniform(count, 0, self.noise * strength),
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Pictures in RGB, `(n, 3, side, side)`."""
        if not len(params["blurred"]):
            return inpt
        result = inpt.clone()
        sharp = inpt[params["blurred"]]
        result[params["blurred"]] = v2.functional.gaussian_blur(sharp, [5, 5], [params["sigma"]])
        small = v2.functional.resize(inpt[params["coarse"]], [params["side"]] * 2, antialias=True)
        result[params["coarse"]] = v2.functional.resize(small, list(inpt.shape[-2:]), antialias=True)
        noisy = inpt[params["noisy"]]
        result[params["noisy"]] = (noisy + params["noise"][: len(noisy)]).clamp(0, 1)
        return result


class Augmentation:
    """What is done to a batch of decoded pictures on its way into the model.

    Args:
        name: `none`, `light` or `heavy`.
        side: of the model's input, in pixels.
    """

    def __init__(self, name: str, side: int) -> None:
        self._side = side
        self._transforms = NAMED[name](side)

    def __call__(self, pictures: torch.Tensor, strength: float, seed: int) -> torch.Tensor:
        """Augment a batch.

        Args:
            pictures: `(n, 4, any, any) uint8` in RGBA.
            strength: 0 to 1.
            seed: decides everything random.

        Returns:
            `(n, 3, side, side) float32` in 0 to 1.
        """
        rgba = pictures.float().div_(255)
        premultiplied = torch.cat([rgba[:, :3] * rgba[:, 3:], rgba[:, 3:]], 1)
        if not self._transforms:
            return on_white(premultiplied, self._side)
        generator = torch.Generator().manual_seed(seed)
        for transform in self._transforms:
            transform.strength, transform.generator = strength, generator
        result: torch.Tensor = v2.Compose(self._transforms)(premultiplied)
        return result.clamp_(0, 1)


def on_white(premultiplied: torch.Tensor, side: int) -> torch.Tensor:
    """Transparent pictures on white, resized: `(n, 4, any, any)` to `(n, 3, side, side)`."""
    flat = premultiplied[:, :3] + 1 - premultiplied[:, 3:]
    resized: torch.Tensor = v2.functional.resize(flat, [side, side], antialias=True)
    return resized.clamp_(0, 1)


def _light(side: int) -> list[PerPicture]:
    return [
        RandomGeometry(degrees=12, shear=0.1, scale=(0.75, 1.15), shift=0.06, side=side),
        RandomBackground(),
        RandomColour(jitter=0.25, hue=0.03, grey=0.05),
        RandomDetail(share=0.1, noise=0.05),
    ]


def _heavy(side: int) -> list[PerPicture]:
    return [
        RandomGeometry(degrees=25, shear=0.25, scale=(0.55, 1.25), shift=0.12, side=side),
        RandomBackground(),
        RandomColour(jitter=0.5, hue=0.08, grey=0.1),
        RandomDetail(share=0.2, noise=0.12),
    ]


NAMED: dict[str, Callable[[int], list[PerPicture]]] = {
    "none": lambda side: [],
    "light": _light,
    "heavy": _heavy,
}


def _chroma(saturation: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """`(n, 3, 3)` matrices that scale and turn the chroma of RGB and keep the luma.

    Source: the YIQ colour space of NTSC, in which hue is an angle.
    """
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    cos, sin = saturation * angle.cos(), saturation * angle.sin()
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    matrix: torch.Tensor = torch.linalg.inv(to_yiq) @ turn @ to_yiq
    return matrix
