"""Sample quality: distances between feature distributions, nearest neighbours, and copies of training images."""

from .classifier import ClassifierFeatures, accuracy, descend, shifted_batch, train_classifier
from .copies import Copy, find_copies
from .extractor import FeatureExtractor, GivenFeatures, extract
from .frechet import ENOUGH, FrechetEstimate, frechet_distance, frechet_estimate, image_keys, matrix_sqrt
from .hubness import Hubness, hubness
from .inception import InceptionFeatures, load_inception, torchvision_inception
from .kernel import KernelEstimate, KernelReference, kernel_distance
from .neighbours import Memorisation, density_coverage, memorisation, precision_recall
from .quality import Quality, QualityReference, describe, require_comparable, spread
from .statistics import FeatureStatistics, Provenance

__all__ = [
    "ENOUGH",
    "ClassifierFeatures",
    "Copy",
    "FeatureExtractor",
    "FeatureStatistics",
    "FrechetEstimate",
    "GivenFeatures",
    "Hubness",
    "InceptionFeatures",
    "KernelEstimate",
    "KernelReference",
    "Memorisation",
    "Provenance",
    "Quality",
    "QualityReference",
    "accuracy",
    "density_coverage",
    "descend",
    "describe",
    "extract",
    "find_copies",
    "frechet_distance",
    "frechet_estimate",
    "hubness",
    "image_keys",
    "kernel_distance",
    "load_inception",
    "matrix_sqrt",
    "memorisation",
    "precision_recall",
    "require_comparable",
    "shifted_batch",
    "spread",
    "torchvision_inception",
    "train_classifier",
]
