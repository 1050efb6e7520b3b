import math

import pytest
import torch

from diffusion.networks.embeddings import Conditioning, FourierEmbedding, SinusoidalEmbedding, sinusoids

BOTH = [SinusoidalEmbedding(64), FourierEmbedding(64)]


def test_sinusoids_against_the_formula():
    positions = torch.tensor([-3.0, 0.0, 0.5, 700.0], dtype=torch.float64)
    found = sinusoids(positions, 6)
    for row, p in zip(found.tolist(), positions.tolist(), strict=True):
        angles = [p * 10_000 ** (-i / 3) for i in range(3)]
        assert row == pytest.approx([math.sin(a) for a in angles] + [math.cos(a) for a in angles], abs=1e-10)


@pytest.mark.parametrize("embedding", BOTH, ids=repr)
def test_features_have_unit_mean_square_and_keep_the_dtype(embedding):
    c_noise = torch.linspace(-5, 5, 11, dtype=torch.float64)
    features = embedding(c_noise)
    assert features.shape == (11, 64)
    assert features.dtype == torch.float64
    torch.testing.assert_close(features.square().sum(1), torch.full((11,), 32.0, dtype=torch.float64))
    assert SinusoidalEmbedding(64)(c_noise.float()).dtype == torch.float32


@pytest.mark.parametrize("embedding", BOTH, ids=repr)
def test_noise_levels_a_hundredth_apart_are_told_apart(embedding):
    """Over all of [-5, 5] no two levels of a grid with step 0.01 have features closer than a tenth of a unit."""
    features = embedding(torch.linspace(-5, 5, 1001, dtype=torch.float64))
    distances = torch.cdist(features, features).fill_diagonal_(torch.inf)
    assert distances.min() > 0.1


def test_sinusoids_are_smooth_between_neighbours():
    """A thousandth of c_noise moves the features by less than a tenth of their norm."""
    c_noise = torch.linspace(-5, 5, 10_001, dtype=torch.float64)
    features = SinusoidalEmbedding(64)(c_noise)
    assert (features[1:] - features[:-1]).norm(dim=1).max() < 0.1 * math.sqrt(32)


def test_fourier_frequencies_are_gaussian_and_kept_with_the_weights():
    embedding = FourierEmbedding(20_000, scale=16.0)
    assert list(embedding.state_dict()) == ["frequencies"]
    assert not list(embedding.parameters())
    assert embedding.frequencies.std().item() == pytest.approx(16.0, rel=0.05)
    angles = 2 * math.pi * 0.3 * embedding.frequencies.double()
    expected = torch.cat([angles.sin(), angles.cos()])[None]
    torch.testing.assert_close(embedding.double()(torch.tensor([0.3], dtype=torch.float64)), expected)


def test_conditioning_adds_the_row_of_the_class_before_the_silu():
    conditioning = Conditioning(8, 16, num_classes=3)
    assert conditioning.classes is not None
    assert conditioning.classes.weight.shape == (4, 16)
    c_noise = torch.tensor([0.5, -2.0])
    with torch.no_grad():
        conditioning.classes.weight.zero_()
        plain = conditioning(c_noise, None)
        conditioning.classes.weight[1] = 7.0
        labelled = conditioning(c_noise, torch.tensor([1, 2]))

    def inverse_silu(y):  # on the far branch, where silu is increasing
        z = y.clone()
        for _ in range(50):
            s = torch.sigmoid(z)
            z = z - (z * s - y) / (s * (1 + z * (1 - s)))
        return z

    embedding = conditioning.dense_2(torch.nn.functional.silu(conditioning.dense_1(conditioning.noise(c_noise))))
    torch.testing.assert_close(inverse_silu(labelled[0].double()), (embedding[0] + 7.0).double(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(labelled[1], plain[1])


@pytest.mark.parametrize(("name", "last"), [("index", 10_000.0 ** (-7 / 8)), ("index-endpoint", 1e-4)])
def test_the_index_of_a_level_is_embedded_as_it_is(name, last):
    """DDPM's code has frequencies down to 1 / 10000 itself, guided-diffusion's stops before."""
    index = torch.tensor([0.0, 7.0, 999.0], dtype=torch.float64)
    found = Conditioning(16, 4, noise_embedding=name).noise(index)
    frequencies = torch.logspace(0, math.log10(last), 8, dtype=torch.float64)
    angles = index[:, None] * frequencies
    torch.testing.assert_close(found, torch.cat([angles.sin(), angles.cos()], dim=1), rtol=1e-9, atol=1e-9)
