"""`python -m diffusion.commands.train_features DATA`: train the feature network that samples of DATA are measured by.

The shipped ones come from `... digits` and `... mnist`; another data set with labels is measured by its own with
`python -m diffusion quality RUN --features FILE`.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from ..cli import command
from ..data import image_names, load_images
from ..errors import UserError, choose
from ..metrics import ClassifierFeatures, accuracy, train_classifier
from ..sample_arguments import Parser, positive, seed

STEPS = 1500


def main(argv: Sequence[str]) -> int:
    """Train, report the accuracy on the test split, and write the file; returns the exit code.

    Raises:
        UserError: For data without labels, or whatever is not understood.
    """
    options = _parse(argv)
    choose("DATA", options.data, image_names())
    data = load_images(options.data, path=options.path, root=options.root)
    if data.train_labels is None or data.test_labels is None:
        raise UserError(f"DATA: '{options.data}' has no labels; a classifier cannot be trained on it")
    start = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = ClassifierFeatures(data.shape, data.levels, data.num_classes, options.data)
    train_classifier(model, data.train, data.train_labels, options.steps, seed=options.seed)
    test = accuracy(model, data.test, data.test_labels)
    about = {
        "data": data.name,
        "train_images": len(data.train),
        "train_sha256": hashlib.sha256(data.train.numpy().tobytes()).hexdigest(),
        "steps": options.steps,
        "seed": options.seed,
        "test_images": len(data.test),
        "test_accuracy": test,
    }
    model.save(options.out, about)
    size = Path(options.out).stat().st_size
    print(
        f"{options.out}: {size / 1000:.0f} kB, accuracy {100 * test:.2f} % of {len(data.test)} test images, "
        f"{time.perf_counter() - start:.0f} s, SHA-256 {model.digest()}"
    )
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m diffusion.commands.train_features", allow_abbrev=False)
    add = parser.add_argument
    add("data", metavar="DATA", help="a named data set with labels: digits, mnist, ...")
    add("--path", help="a folder, .zip or .npz of images in place of the set's own")
    add("--root", default="data", help="the folder that data sets are kept in (default: data)")
    add("--steps", type=positive, default=STEPS, metavar="N", help=f"training steps (default: {STEPS})")
    add("--seed", type=seed, default=0, metavar="S", help="default: 0")
    add("--out", required=True, metavar="FILE", help="the .safetensors file to write")
    return parser.parse_args(list(argv))


if __name__ == "__main__":
    sys.exit(command(main))
