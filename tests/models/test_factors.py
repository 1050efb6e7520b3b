"""Factors on the weights of a network: nothing at first, W + B A afterwards, and nothing but them is trained."""

import pytest
import torch

from diffusion.errors import UserError
from diffusion.models.factors import add_factors, for_file, learned_names, merge
from diffusion.networks import MLP, DiT, UNet

MADE = {
    "unet": (lambda: UNet(2, 8, (1, 2), blocks=1, attention=(4,), dropout=0.0, num_classes=3, image_size=8), (2, 8, 8)),
    "signal": (lambda: UNet(1, 8, (1,), blocks=1, attention=(), dropout=0.0, image_size=(8,)), (1, 8)),
    "dit": (lambda: DiT(1, 2, 16, 1, heads=2, image_size=8), (1, 8, 8)),
}


def disturbed(network, seed=0):
    """The network with no weight at zero, and its input."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return network.eval()


@pytest.mark.parametrize("kind", MADE)
def test_the_network_with_factors_is_that_of_their_sum(kind):
    make, shape = MADE[kind]
    network = disturbed(make())
    base = {name: value.clone() for name, value in network.state_dict().items()}
    x, c = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, -1.0])
    before = network(x, c)
    count = add_factors(network, 2)
    assert torch.equal(network(x, c), before), "B is zero: the same bits"
    names = learned_names(network)
    assert len(names) == 2 * count
    assert all(name.endswith((".up", ".down")) for name in names)
    disturbed(network, 3)
    learned = for_file({name: network.state_dict()[name] for name in names})
    expected = dict(base)
    for name in base:
        if f"{name}.up" in learned:
            product = torch.einsum("or,ri->oi", learned[f"{name}.up"], learned[f"{name}.down"])
            assert torch.linalg.matrix_rank(product) <= 2
            expected[name] = base[name] + product.reshape(base[name].shape)
    assert sum(not torch.equal(expected[name], base[name]) for name in base) == count
    found = merge(base, learned, list(base))
    assert found.keys() == base.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)
    plain = make().eval()
    plain.load_state_dict(found)
    assert torch.equal(plain(x, c), network(x, c))
    assert not torch.allclose(plain(x, c), before, atol=1e-3)
    network(x, c).square().sum().backward()
    assert all((weight.grad is not None) == (name in names) for name, weight in network.named_parameters())


def test_attention_and_convolutions_have_factors_and_nothing_else():
    network = MADE["unet"][0]()
    matrices = {name for name, weight in network.named_parameters() if weight.ndim > 1}
    add_factors(network, 1)
    with_factors = {name.split(".parametrizations")[0] for name in learned_names(network)}
    left = {name.removesuffix(".weight") for name in matrices} - with_factors
    assert any("qkv" in name for name in with_factors)
    assert left
    assert all("dense" in name or "classes" in name for name in left), left


def test_a_rank_is_at_most_that_of_the_weight_and_what_is_named_is_trained_whole():
    network = MADE["unet"][0]()
    add_factors(network, 1000, ["conditioning.classes.weight"])
    assert "conditioning.classes.weight" in learned_names(network)
    for name, weight in network.named_parameters():
        if name.endswith(".up"):
            assert weight.shape[1] <= len(weight)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"trainer\.lora: found 4; .* network has none"):
        add_factors(MLP(2, width=8), 4)
    base = {"a.weight": torch.ones(3, 2, 2), "b": torch.ones(3)}
    up, down = torch.ones(3, 1), torch.ones(1, 4)
    for learned, told in (
        ({"a.weight.up": up, "a.weight.down": torch.ones(1, 5)}, r"\(3, 1\) and \(1, 5\) do not fit 'a.weight' \(3, 2"),
        ({"a.weight.up": up, "a.weight.down": torch.ones(2, 4)}, "do not fit"),
        ({"a.weight.up": torch.ones(3), "a.weight.down": down}, "do not fit"),
        ({"b.up": up, "b.down": torch.ones(1, 1)}, "do not fit 'b'"),
        ({"a.weight.up": up}, "'a.weight.up' belongs to no weight"),
        ({"c.weight.up": up, "c.weight.down": down}, "belongs to no weight"),
        ({"a.weight": torch.ones(3, 2, 2), "a.weight.up": up, "a.weight.down": down}, "belongs to no weight"),
    ):
        with pytest.raises(ValueError, match=told):
            merge(base, learned, list(base))
    found = merge(base, {"b": torch.zeros(3)}, ["b"])
    assert torch.equal(found["b"], torch.zeros(3))
