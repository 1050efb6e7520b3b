"""`python -m diffusion train-features DATA`: train the feature network that samples of DATA are measured by.

The shipped ones come from `... digits` and `... mnist`; another data set with labels is measured by its own with
`python -m diffusion quality RUN --features FILE`.
"""

from __future__ import annotations

import argparse
import time

from ...metrics import ClassifierFeatures, accuracy, train_classifier
from .labelled_data import about, drawn, labelled, written


def run(options: argparse.Namespace) -> int:
    """Train, report the accuracy on the test split, and write the file; returns the exit code."""
    data, train, test = labelled(options)
    start = time.perf_counter()
    model = drawn(lambda: ClassifierFeatures(data.shape, data.levels, data.num_classes, options.data), options.seed)
    train_classifier(model, *train, options.steps, seed=options.seed)
    share = accuracy(model, *test)
    model.save(options.out, {**about(data, options), "test_accuracy": share})
    print(
        f"{written(options)}, accuracy {100 * share:.2f} % of {len(data.test)} test images, "
        f"{time.perf_counter() - start:.0f} s, SHA-256 {model.digest()}"
    )
    return 0
