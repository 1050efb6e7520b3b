"""How often the digits' feature network reads the label that `--classifier digits` was asked for, by the weight.

    python benchmarks/classifier_guidance.py

Eight images of each class by the shipped model, which knows no labels, ddim, 15 steps; about two minutes on one core.
The network that reads is not the classifier that guides, but was trained on the same images.
"""

from __future__ import annotations

import torch

from diffusion import load
from diffusion.denoisers.guidance import ClassifierGuided, PathClassifier
from diffusion.metrics import ClassifierFeatures
from diffusion.models import noisy_classifier
from diffusion.storage import runs

EACH = 8
WEIGHTS = (0.0, 0.5, 1.0, 2.0, 4.0)


def main() -> None:
    """Print a line a weight; 0 is the model alone."""
    model = load("pretrained:digits", torch.device("cpu"))
    classifier = noisy_classifier.load(runs.resolve_classifier("digits"))
    reader = ClassifierFeatures.load(runs.PRETRAINED / "digits-features.safetensors")
    on_path = PathClassifier(classifier, model.denoiser.schedule)
    for weight in WEIGHTS:
        guided = model.around(ClassifierGuided(model.denoiser, on_path, classifier.num_classes, weight))
        read = 0
        for label in range(classifier.num_classes):
            x = guided.sample(EACH, seed=label, sampler="ddim", steps=15, label=label)
            images = ((x + 1.0) / 2.0 * reader.levels).floor().clamp(0, reader.levels - 1).to(torch.uint8)
            read += int((reader.logits(images).argmax(1) == label).sum())
        print(f"weight {weight:3}: {read} of {EACH * classifier.num_classes} are read as their label", flush=True)


if __name__ == "__main__":
    main()
