"""The pictures of docs/gallery.md, each drawn by the command that the page shows: `python docs/gallery.py [NAME ...]`.

The commands run in one temporary folder, in this order, so that one may use what another has written. Pictures go to
docs/images/gallery, and the page is written anew. Minutes on a CPU.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageSequence

from diffusion.commands.app import sample
from diffusion.commands.dispatch import COMMANDS

FOLDER = Path(__file__).parent
IMAGES = FOLDER / "images" / "gallery"
MASK = (
    """python -c "from PIL import Image; m = Image.new('L', (8, 8)); m.paste(255, (0, 4, 8, 8)); m.save('mask.png')" """
)
INTRODUCTION = """# Gallery

Each picture with the command that drew it. With uv, `python` is `uv run python`.
`python docs/gallery.py` draws them all again, and writes this page.
Others stand where they are explained, with their commands:
[samplers against their cost](choosing-a-sampler.md#measured), [where the bits go](results.md),
[images of other sizes](control.md#images-of-another-size).
"""


@dataclass(frozen=True)
class Picture:
    """A picture of the page.

    Args:
        name: Its file's name.
        title: Its heading.
        about: What it shows.
        commands: What draws it, the last one into `made`.
        made: The file that the commands write.
        width: In pixels: small pictures are enlarged to about this, a whole number of times; wider ones are reduced.
    """

    name: str
    title: str
    about: str
    commands: tuple[str, ...]
    made: str
    width: int = 480

    def draw(self) -> None:
        """Run the commands in the working directory, and keep what they made."""
        for command in self.commands:
            run(command)
        IMAGES.mkdir(parents=True, exist_ok=True)
        target = IMAGES / self.name
        if target.suffix == ".gif":
            smaller(self.made, target)
            return
        with Image.open(self.made) as made:
            factor = max(1, self.width // made.width)
            shown = made.resize((made.width * factor, made.height * factor), Image.Resampling.NEAREST)
            if shown.width > self.width:
                size = (self.width, round(shown.height * self.width / shown.width))
                shown = shown.resize(size, Image.Resampling.LANCZOS)
            shown.save(target, optimize=True)

    def markdown(self) -> str:
        """Its part of the page."""
        lines = "\n".join(command.strip() for command in self.commands)
        return (
            f"## {self.title}\n\n{self.about}\n\n![{self.title}](images/gallery/{self.name})\n\n```sh\n{lines}\n```\n"
        )


PICTURES = (
    Picture(
        "digits.png", "Digits", "64 samples of the shipped model, 20 evaluations each.",
        ("python sample.py --run pretrained:digits --n 64 --out digits.png",), "digits.png", 540,
    ),
    Picture(
        "path.gif", "The path from noise", "x_t next to E[x | x_t], from noise to digits.",
        ("python sample.py --run pretrained:digits --n 16 --animate --out path.gif",), "path.gif",
    ),
    Picture(
        "sevens.png", "A class, with classifier-free guidance", "32 sevens, ten steps at guidance 1.5.",
        ("python sample.py --run pretrained:mnist-class --label 7 --guidance 1.5 --steps 10 --n 32 --out sevens.png",),
        "sevens.png",
    ),
    Picture(
        "threes.png", "A class, from a model without labels",
        "Threes from an unconditional model, guided by a classifier of noisy images.",
        ("python sample.py --run pretrained:digits --label 3 --classifier digits --guidance 4 --n 32 "
         "--out threes.png",),
        "threes.png",
    ),
    Picture(
        "inpainted.png", "Inpainting", "The lower half filled in, eight times, given the upper half of a digit.",
        (
            "python sample.py --run pretrained:digits --n 2 --out digits/", MASK,
            "python sample.py --run pretrained:digits --inpaint digits/000000.png --mask mask.png --n 8 "
            "--posterior pseudo-inverse --sampler ancestral --steps 30 "
            "--out inpainted.png",
        ),
        "inpainted.png",
    ),
    Picture(
        "between.png", "Interpolation", "From one digit to another, along the arc between their noises.",
        ("python sample.py --run pretrained:digits --interpolate digits/000000.png digits/000001.png --n 8 "
         "--out between.png",),
        "between.png",
    ),
    Picture(
        "edited.png", "Editing", "Noise is added to a digit up to half the signal, and removed: eight variations.",
        ("python sample.py --run pretrained:digits --edit digits/000001.png --strength 0.5 --n 8 --sampler ancestral "
         "--out edited.png",),
        "edited.png",
    ),
)  # fmt: skip


def smaller(made: str | Path, target: Path) -> None:
    """Write an animation at half its size, in 16 greys."""
    with Image.open(made) as film:
        frames, times = [], []
        for frame in ImageSequence.Iterator(film):
            grey = frame.convert("L").resize((film.width // 2, film.height // 2), Image.Resampling.NEAREST)
            frames.append(grey.quantize(16, dither=Image.Dither.NONE))
            times.append(frame.info.get("duration", 100))
    frames[0].save(target, save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=True)


def run(command: str) -> None:
    """Run a command of this package, or one line of Python, in the working directory.

    Raises:
        SystemExit: If it fails.
    """
    print(f"$ {command}", flush=True)
    _, first, *rest = shlex.split(command)
    if first == "-c":
        exec(rest[0], {})
        return
    name, argv = (first.removesuffix(".py"), rest) if first != "-m" else (rest[1], rest[2:])
    if (sample if name == "sample" else COMMANDS[name])(argv):
        raise SystemExit(f"failed: {command}")


def page() -> str:
    """The page."""
    return "\n".join([INTRODUCTION, *(picture.markdown() for picture in PICTURES)])


def main(names: list[str]) -> None:
    """Draw the pictures of these names, or all, and write the page."""
    (FOLDER / "gallery.md").write_text(page(), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for picture in PICTURES:
            if not names or Path(picture.name).stem in names:
                picture.draw()
        os.chdir(FOLDER)


if __name__ == "__main__":
    main(sys.argv[1:])
