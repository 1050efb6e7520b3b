"""Folders of images with what is said of each: a table, and images of the same names."""

import numpy as np
from PIL import Image

TABLE = "file,age,kind,score,pose.x,pose.y\n"


def written(folder, n=12, lines=None):
    """A folder of images in `a/` and `b/`, labels.csv, and a folder `depth` of the same names."""
    text = TABLE if lines is None else lines
    for i in range(n):
        path = folder / ("a" if i % 2 else "b") / f"{i}.png"
        paired = folder / "depth" / path.relative_to(folder).with_suffix(".jpg")
        for place, value in ((path, 7 * i + 1), (paired, 255 - 7 * i)):
            place.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.full((4, 4), value, np.uint8)
            pixels[0, 0] = 128  # not of one value
            Image.fromarray(pixels).save(place, **({"quality": 100} if place is paired else {}))
        if lines is None:
            age = "" if i == 3 else i + 0.5
            text += f"{path.relative_to(folder)},{age},{'cat' if i < 6 else 'dog'},{i % 3},{i},{-i}\n"
    (folder / "labels.csv").write_text(text)
    return folder
