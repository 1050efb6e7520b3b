"""`python -m diffusion train-classifier DATA`: train the classifier of noisy images for `sample.py --classifier`.

The shipped one comes from `... digits`.
"""

from __future__ import annotations

import argparse
import time

from ...models import noisy_classifier
from .labelled_data import about, drawn, labelled, written

LOG_SNRS = (-6, -4, -2, 0, 2, 4, 8)


def run(options: argparse.Namespace) -> int:
    """Train, report accuracy and cross-entropy by noise level on the test split, and write the file; the exit code."""
    data, train, test = labelled(options)
    start = time.perf_counter()
    network = drawn(lambda: noisy_classifier.build(data.shape, data.num_classes), options.seed)
    noisy_classifier.train(network, *train, data.levels, options.steps, seed=options.seed)
    found = noisy_classifier.by_noise_level(network, *test, data.levels, LOG_SNRS)
    figures = {f"test_accuracy_at_{log_snr}": share for log_snr, (share, _) in found.items()}
    noisy_classifier.save(options.out, network, {**about(data, options), **figures})
    print(f"{written(options)}, of {len(data.test)} test images, {time.perf_counter() - start:.0f} s")
    print(f"{'log-SNR':16}" + "".join(f"{log_snr:>8}" for log_snr in found))
    print(f"{'accuracy':16}" + "".join(f"{100 * share:7.1f}%" for share, _ in found.values()))
    print(f"{'nats':16}" + "".join(f"{nats:8.3f}" for _, nats in found.values()))
    return 0
