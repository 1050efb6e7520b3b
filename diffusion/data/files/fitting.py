"""The size that images are brought to, and how."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

FITS = ("crop", "stretch", "center")


@dataclass(frozen=True)
class Fit:
    """The size that images are brought to, and how.

    Args:
        height, width: Of the result.
        how: `crop`: resized (bicubic, antialiased) until they cover it, and the rest cut off on both sides; `stretch`:
            resized, whatever becomes of their shape; `center`: its middle is cut out, and nothing is resized.
    """

    height: int
    width: int
    how: str = "crop"

    @property
    def key(self) -> int | str:
        """What tells it from others, in a cache."""
        square = self.height == self.width and self.how == "crop"
        return self.height if square else f"{self.height}x{self.width} {self.how}"

    @property
    def told(self) -> str:
        """What becomes of an image, in words."""
        to = f"{self.height} x {self.width} (height x width)"
        if self.how == "crop" and self.height == self.width:
            return f"shorter side to {self.height} (bicubic, antialiased), centre crop"
        ways = {"crop": "bicubic, antialiased, centre crop", "stretch": "bicubic, antialiased, stretched",
                "center": "centre crop alone"}  # fmt: skip
        return f"to {to}, {ways[self.how]}"

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image at this size.

        Raises:
            ValueError: For `center`, where the image is smaller.
        """
        width, height = image.size
        if (width, height) == (self.width, self.height):
            return image
        if self.how == "center":
            left, top = (width - self.width) // 2, (height - self.height) // 2
            if left < 0 or top < 0:
                raise ValueError(f"{width} x {height} is smaller than the {self.width} x {self.height} to cut out")
            return image.crop((left, top, left + self.width, top + self.height))
        # In one go, by the part of the original that remains: a narrow strip never becomes an enormous image.
        part_width, part_height = float(width), float(height)
        if self.how == "crop" and width * self.height > height * self.width:
            part_width = height * self.width / self.height
        elif self.how == "crop":
            part_height = width * self.height / self.width
        left, top = (width - part_width) / 2, (height - part_height) / 2
        box = (left, top, left + part_width, top + part_height)
        return image.resize((self.width, self.height), Image.Resampling.BICUBIC, box=box)


Size = int | Fit  # one number: a square


def fit_of(size: Size | None) -> Fit | None:
    """The fit that a size stands for."""
    return Fit(size, size) if isinstance(size, int) else size


def resize_and_crop(image: Image.Image, size: Size) -> Image.Image:
    """Resize the shorter side (bicubic, antialiased) and cut out the centre, or as `Fit` says."""
    fit = fit_of(size)
    assert fit is not None
    return fit(image)
