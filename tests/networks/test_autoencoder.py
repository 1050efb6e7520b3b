import pytest
import torch
import torch.nn.functional as F

from diffusion.errors import UserError
from diffusion.networks.autoencoder import Decoder, Encoder

SMALL = {"base_channels": 4, "multipliers": (1, 2, 2)}


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 13)])
@pytest.mark.parametrize("blocks", [1, 2])
def test_shapes(shape, blocks, waken):
    encoder = waken(Encoder(shape, 5, blocks=blocks, **SMALL))
    decoder = waken(Decoder(shape, 5, 7, blocks=blocks, **SMALL))
    z = encoder(torch.randn(3, *shape))
    y = decoder(z)
    assert z.shape == (3, 5)
    assert y.shape == (3, 7, *shape[1:])
    assert y.isfinite().all()
    assert bool(z.std() > 0)
    assert bool(y.std() > 0)


def test_one_level_has_no_resampling():
    encoder = Encoder((1, 8, 8), 2, 4, (1,))
    assert encoder.dense.in_features == 4 * 8 * 8
    assert Decoder((1, 8, 8), 2, 1, 4, (1,))(encoder(torch.randn(2, 1, 8, 8))).shape == (2, 1, 8, 8)


def test_rows_do_not_meet(waken):
    """No statistic over the batch: a row's code and image do not depend on its batch mates."""
    encoder, decoder = waken(Encoder((1, 8, 8), 3, **SMALL)), waken(Decoder((1, 8, 8), 3, 2, **SMALL))
    x = torch.randn(6, 1, 8, 8)
    whole, alone = decoder(encoder.train()(x)), decoder.train()(encoder(x[2:3]))
    torch.testing.assert_close(whole[2:3], alone, rtol=1e-4, atol=1e-5)


def test_an_awkward_size_is_enlarged_by_its_border_and_cropped(waken):
    encoder, padded = waken(Encoder((1, 9, 10), 3, **SMALL)), Encoder((1, 12, 12), 3, **SMALL).eval()
    padded.load_state_dict(encoder.state_dict())
    x = torch.randn(2, 1, 9, 10)
    torch.testing.assert_close(encoder(x), padded(F.pad(x, (1, 1, 1, 2), mode="replicate")))
    decoder, whole = waken(Decoder((1, 9, 10), 3, 2, **SMALL)), Decoder((1, 12, 12), 3, 2, **SMALL).eval()
    whole.load_state_dict(decoder.state_dict())
    z = torch.randn(2, 3)
    assert torch.equal(decoder(z), whole(z)[..., 1:10, 1:11])


def test_autoencoder_learns_to_copy():
    x = F.interpolate(torch.randn(16, 1, 2, 2), size=8)
    encoder, decoder = Encoder((1, 8, 8), 4, 8, (1, 2)), Decoder((1, 8, 8), 4, 1, 8, (1, 2))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=8e-3)
    for _ in range(100):
        optimizer.zero_grad()
        loss = (decoder(encoder(x)) - x).square().mean()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.15 * float(x.var())


def test_all_parameters_have_a_gradient(waken):
    encoder, decoder = waken(Encoder((2, 8, 8), 3, **SMALL)), waken(Decoder((2, 8, 8), 3, 2, **SMALL))
    decoder(encoder(torch.randn(2, 2, 8, 8))).square().sum().backward()
    for network in (encoder, decoder):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (1, 7, 8)}, "shape: found"),
        ({"shape": (8, 8)}, "shape: found"),
        ({"features": 0}, "features: 0"),
        ({"base_channels": 0}, "base_channels: 0"),
        ({"blocks": 0}, "blocks: 0"),
        ({"multipliers": ()}, "multipliers: found"),
        ({"multipliers": (1, 0)}, "multipliers: found"),
        ({"multipliers": (1,) * 5}, "at most 4"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    arguments = {"shape": (1, 8, 8), "features": 2, **options}
    for build in (lambda: Encoder(**arguments), lambda: Decoder(**arguments, out_channels=1)):
        with pytest.raises(UserError, match=message):
            build()


def test_other_images_are_refused():
    encoder = Encoder((1, 8, 8), 2, **SMALL)
    with pytest.raises(UserError, match=r"found shape \(1, 8, 16\)"):
        encoder(torch.zeros(1, 1, 8, 16))
    with pytest.raises(UserError, match="out_channels: 0"):
        Decoder((1, 8, 8), 2, 0)
