"""Named augmentations for batches of pictures, as torchvision v2 transforms.

torchvision's own transforms draw one set of parameters for all pictures of a call, or go picture by picture;
those here draw one set per picture and apply them to the batch at once, which is what two cores can afford. They work
in place wherever the tensor is their own: fresh memory for a batch costs more than the arithmetic on it.

A photograph, which is opaque everywhere, is cropped at random; a drawing, which isn't, is moved about on a random
background.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional
from torchvision.transforms import v2

# Every fifth seed is kept for evaluation: those that leave a rest of four; no training step draws from one.
HELD_OUT_EVERY = 5


def training_seed(step: int, seed: int) -> int:
    """Return the augmentation seed of a training step; never one that is kept for evaluation."""
    groups, rest = divmod(step, HELD_OUT_EVERY - 1)
    return HELD_OUT_EVERY * (groups + 1_000_003 * seed) + rest


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
        """Draw uniform numbers from 0 to 1."""
        return torch.rand(shape, generator=self.generator)

    def uniform(self, count: int, low: float, high: float) -> torch.Tensor:
        """Draw `(count, 1, 1, 1)` numbers, ready to multiply pictures with."""
        return self.rand(count, 1, 1, 1) * (high - low) + low

    def amounts(self, count: int) -> torch.Tensor:
        """Draw `(count, 1, 1, 1)` shares of the strength."""
        return self.uniform(count, 0.0, self.strength)


class RandomSampling(PerPicture):
    """Samples each picture at an affine matrix.

    Args:
        side: of the result, in pixels.
        flip: whether half of the pictures are mirrored, left to right.
        outside: what is beyond the picture: `zeros`, which is transparent, or `border`, its outermost pixels.
    """

    def __init__(self, side: int, flip: bool, outside: str) -> None:
        super().__init__()
        self.side, self.flip, self.outside = side, flip, outside

    def mirror(self, matrix: torch.Tensor) -> torch.Tensor:
        """Mirror some of the matrices `(n, 2, 3)`; without `flip` nothing is drawn."""
        if self.flip:
            mirrored = self.rand(len(matrix)) < 0.5 * self.strength
            matrix[mirrored, :, 0] *= -1
        return matrix

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Sample the pictures at the matrices."""
        size = [len(inpt), inpt.shape[1], self.side, self.side]
        grid = functional.affine_grid(params["matrix"], size, align_corners=False)
        return functional.grid_sample(inpt, grid, mode="bilinear", padding_mode=self.outside, align_corners=False)


class RandomCrop(RandomSampling):
    """Cuts a part out of each photograph and stretches it to the square; no more of it than is there.

    Args:
        area: smallest part, as a share of the picture.
        degrees: largest rotation; corners that stick out where the part leaves no room have the border's pixels.
        side: of the result, in pixels.
        flip: whether half of the pictures are mirrored, left to right.

    Source: Szegedy et al. 2015, Going Deeper with Convolutions, section 6, for areas and aspect ratios.
    """

    def __init__(self, area: float, degrees: float, side: int, flip: bool) -> None:
        super().__init__(side, flip, "border")
        self.area, self.degrees = area, degrees

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the affine matrices, `(n, 2, 3)`, from output to input coordinates."""
        count = len(flat_inputs[0])
        area = 1 - self.rand(count) * (1 - self.area) * self.strength
        # beyond 1 / area the longer side would be longer than the picture
        limit = torch.minimum(torch.full((count,), math.log(4 / 3) * self.strength), -area.log())
        aspect = torch.exp((self.rand(count) * 2 - 1) * limit)
        angle = (self.rand(count) * 2 - 1) * math.radians(self.degrees) * self.strength
        sides = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()], 1)
        part = _turn(angle) * sides[:, None]
        room = (1 - part.abs().sum(2, keepdim=True)).clamp(min=0)
        centre = (self.rand(count, 2, 1) * 2 - 1) * room
        return {"matrix": self.mirror(torch.cat([part, centre], 2))}


class RandomGeometry(RandomSampling):
    """Rotates, shears, scales and shifts each drawing.

    Args:
        degrees: largest rotation.
        shear: largest shear, as a tangent.
        scale: smallest and largest size.
        shift: largest shift, as a share of the side.
        side: of the result, in pixels.
        flip: whether half of the pictures are mirrored, left to right.
    """

    def __init__(
        self, degrees: float, shear: float, scale: tuple[float, float], shift: float, side: int, flip: bool
    ) -> None:
        super().__init__(side, flip, "zeros")
        self.degrees, self.shear, self.scale, self.shift = degrees, shear, scale, shift

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the affine matrices, `(n, 2, 3)`, from output to input coordinates."""
        count = len(flat_inputs[0])
        amount = self.amounts(count).flatten()
        angle = (self.rand(count) * 2 - 1) * math.radians(self.degrees) * amount
        shear = (self.rand(count) * 2 - 1) * self.shear * amount
        low, high = (math.log(limit) for limit in self.scale)
        zoom = torch.exp(-(self.rand(count) * (high - low) + low) * amount)
        aspect = torch.exp((self.rand(count) * 2 - 1) * 0.15 * amount)
        shift = (self.rand(count, 2, 1) * 2 - 1) * 2 * self.shift * amount[:, None, None]
        skew = torch.stack([zoom * aspect, shear, torch.zeros(count), zoom / aspect], 1).view(-1, 2, 2)
        return {"matrix": self.mirror(torch.cat([_turn(angle) @ skew, shift], 2))}


class RandomBackground(PerPicture):
    """Puts transparent pictures (premultiplied RGBA) on a colour, a gradient, soft clouds or plain white."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the backgrounds, `(n, 3, side, side)`."""
        pictures = flat_inputs[0]
        count, side = len(pictures), pictures.shape[-1]
        # mostly light, because black drawings have no other outline
        light = self.uniform(count, 0.3, 1.0)
        plain = self.rand(count, 3, 1, 1) * (1 - light) + light
        slope, clouds = (v2.functional.resize(self.rand(count, 3, n, n), [side, side]) for n in (2, 5))
        choice = self.rand(count, 1, 1, 1)
        rough = torch.where(choice < 0.75, slope, clouds).mul_(0.6).add_(plain * 0.55)
        ground = torch.where(choice < 0.5, plain, rough).clamp_(0, 1)
        white = self.rand(count, 1, 1, 1) > 0.85 * self.strength
        return {"ground": ground.masked_fill_(white, 1)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Put RGBA on the backgrounds; returns RGB."""
        return params["ground"].mul_(1 - inpt[:, 3:]).add_(inpt[:, :3])


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
        """Draw gains per picture, and `(n, 3, 3)` colour matrices."""
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
        """Change pictures in RGB, `(n, 3, side, side)`."""
        coloured = (params["matrix"] @ inpt.flatten(2)).view_as(inpt)
        mean = coloured.mean((1, 2, 3), keepdim=True)
        return coloured.sub_(mean).mul_(params["contrast"]).add_(mean).mul_(params["brightness"]).clamp_(0, 1)


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
        """Draw which pictures, in a random order, and how much."""
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
        """Change pictures in RGB, `(n, 3, side, side)`."""
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
        flip: whether half of the pictures are mirrored, left to right, which text and arrows don't bear; nothing to
            `none`.
    """

    def __init__(self, name: str, side: int, flip: bool = False) -> None:
        self._side = side
        self._photographs, self._drawings = NAMED[name](side, flip)

    def __call__(self, pictures: torch.Tensor, strength: float, seed: int) -> torch.Tensor:
        """Augment a batch.

        Args:
            pictures: `(n, 4, any, any) uint8` in RGBA.
            strength: 0 to 1.
            seed: decides everything random.

        Returns:
            `(n, 3, side, side) float32` in 0 to 1.
        """
        generator = torch.Generator().manual_seed(seed)
        for transform in (*self._drawings, *self._photographs):
            transform.strength, transform.generator = strength, generator
        opaque = (pictures[:, 3] == 255).flatten(1).all(1)
        if opaque.all():
            return self._photograph(pictures)
        if not opaque.any():
            return self._drawing(pictures)
        result = torch.empty(len(pictures), 3, self._side, self._side)
        result[~opaque] = self._drawing(pictures[~opaque])
        result[opaque] = self._photograph(pictures[opaque])
        return result

    def _drawing(self, pictures: torch.Tensor) -> torch.Tensor:
        premultiplied = pictures.float().div_(255)
        premultiplied[:, :3] *= premultiplied[:, 3:]
        if not self._drawings:
            return on_white(premultiplied, self._side)
        result: torch.Tensor = v2.Compose(self._drawings)(premultiplied)
        return result.clamp_(0, 1)

    def _photograph(self, pictures: torch.Tensor) -> torch.Tensor:
        rgb = pictures[:, :3].float().div_(255)
        if not self._photographs:
            return _resized(rgb, self._side)
        result: torch.Tensor = v2.Compose(self._photographs)(rgb)
        return result.clamp_(0, 1)


def on_white(premultiplied: torch.Tensor, side: int) -> torch.Tensor:
    """Put transparent pictures on white, and resize them: `(n, 4, any, any)` to `(n, 3, side, side)`."""
    return _resized(premultiplied[:, :3] + 1 - premultiplied[:, 3:], side)


def _resized(pictures: torch.Tensor, side: int) -> torch.Tensor:
    resized: torch.Tensor = v2.functional.resize(pictures, [side, side], antialias=True)
    return resized.clamp_(0, 1)


# the transforms of photographs, and those of drawings
Kinds = tuple[list[PerPicture], list[PerPicture]]


def _light(side: int, flip: bool) -> Kinds:
    colour, detail = RandomColour(jitter=0.25, hue=0.03, grey=0.05), RandomDetail(share=0.1, noise=0.05)
    crop = RandomCrop(area=0.5, degrees=0, side=side, flip=flip)
    move = RandomGeometry(degrees=12, shear=0.1, scale=(0.75, 1.15), shift=0.06, side=side, flip=flip)
    return [crop, colour, detail], [move, RandomBackground(), colour, detail]


def _heavy(side: int, flip: bool) -> Kinds:
    colour, detail = RandomColour(jitter=0.5, hue=0.08, grey=0.1), RandomDetail(share=0.2, noise=0.12)
    crop = RandomCrop(area=0.2, degrees=10, side=side, flip=flip)
    move = RandomGeometry(degrees=25, shear=0.25, scale=(0.55, 1.25), shift=0.12, side=side, flip=flip)
    return [crop, colour, detail], [move, RandomBackground(), colour, detail]


NAMED: dict[str, Callable[[int, bool], Kinds]] = {
    "none": lambda side, flip: ([], []),
    "light": _light,
    "heavy": _heavy,
}


def _turn(angle: torch.Tensor) -> torch.Tensor:
    """Return `(n, 2, 2)` rotations."""
    return torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)


def _chroma(saturation: torch.Tensor, angle: torch.Tensor) -> torch.Tensor:
    """Return `(n, 3, 3)` matrices that scale and turn the chroma of RGB and keep the luma.

    Source: the YIQ colour space of NTSC, in which hue is an angle.
    """
    to_yiq = torch.tensor([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    cos, sin = saturation * angle.cos(), saturation * angle.sin()
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], 1).view(-1, 3, 3)
    matrix: torch.Tensor = torch.linalg.inv(to_yiq) @ turn @ to_yiq
    return matrix
