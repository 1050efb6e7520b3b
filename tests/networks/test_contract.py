"""Laws that every network obeys: shape, start at zero, labels, batch mates, gradients, dtypes, compilation."""

import jaxtyping
import pytest
import torch

from diffusion.errors import UserError
from diffusion.networks import MLP, DiT, UNet, layers

CLASSES = 3
SLOW = pytest.mark.slow


def small_unet(**options):
    return UNet(2, 8, (1, 2), 1, (4,), image_size=8, **options)


def small_dit(**options):
    return DiT(2, width=16, depth=2, heads=2, **options)


def signal_unet(**options):
    return UNet(2, 8, (1, 2), 1, (4,), image_size=(8,), **options)


def volume_unet(**options):
    return UNet(2, 8, (1, 2), 1, (2,), image_size=(4, 2, 4), **options)


def signal_dit(**options):
    return DiT(2, width=16, depth=2, heads=2, image_size=(8,), **options)


def volume_dit(**options):
    return DiT(2, width=16, depth=2, heads=2, image_size=(4, 2, 4), **options)


def modern_dit(**options):
    """With every option of today's transformers."""
    given = {"positions": "rotary", "qk_norm": True, "norm": "rms", "activation": "swiglu", "bottleneck": 3}
    return DiT(2, width=16, depth=2, heads=2, **{**given, **options})


def small_mlp(**options):
    return MLP(2, width=16, depth=2, **options)


BUILDERS = [
    pytest.param(small_unet, (2, 8, 8), id="unet"),
    pytest.param(small_dit, (2, 8, 8), id="dit"),
    pytest.param(small_mlp, (2,), id="mlp"),
    pytest.param(signal_unet, (2, 8), id="unet of signals"),
    pytest.param(volume_unet, (2, 4, 2, 4), id="unet of volumes"),
    pytest.param(signal_dit, (2, 8), id="dit of signals"),
    pytest.param(volume_dit, (2, 4, 2, 4), id="dit of volumes"),
    pytest.param(modern_dit, (2, 8, 8), id="modern dit"),
]
each_network = pytest.mark.parametrize(("build", "shape"), BUILDERS)


def inputs(shape, batch=4, dtype=torch.float32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, *shape, generator=generator, dtype=torch.float64).to(dtype)
    c_noise = torch.linspace(-5, 5, batch, dtype=torch.float64).to(dtype)
    return x, c_noise, torch.arange(batch) % (CLASSES + 1)


@each_network
@pytest.mark.parametrize("noise_embedding", ["sinusoidal", "fourier"])
def test_initial_output_is_zero_of_the_shape_and_dtype_of_x(build, shape, noise_embedding):
    network = build(num_classes=CLASSES, noise_embedding=noise_embedding)
    x, c_noise, labels = inputs(shape)
    y = network(x, c_noise, labels)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert torch.equal(y, torch.zeros_like(x))


@each_network
def test_initialisation_is_a_function_of_the_seed(build, shape):
    def weights(seed):
        torch.manual_seed(seed)
        return build(num_classes=CLASSES, noise_embedding="fourier").state_dict()

    first, again, other = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@each_network
@pytest.mark.parametrize("noise_embedding", ["sinusoidal", "fourier"])
def test_x_noise_level_and_class_matter(build, shape, noise_embedding, waken):
    network = waken(build(num_classes=CLASSES, noise_embedding=noise_embedding))
    x, c_noise, _ = inputs(shape, batch=1)
    zero, one = torch.tensor([0]), torch.tensor([1])
    y = network(x, c_noise, zero)
    for other in (network(x + 0.1, c_noise, zero), network(x, c_noise + 0.1, zero), network(x, c_noise, one)):
        assert (y - other).abs().max() > 1e-3


@each_network
def test_no_label_is_the_last_row(build, shape, waken):
    network = waken(build(num_classes=CLASSES))
    x, c_noise, _ = inputs(shape)
    last = torch.full((len(x),), CLASSES)
    assert torch.equal(network(x, c_noise), network(x, c_noise, last))
    assert torch.equal(network(x, c_noise, None), network(x, c_noise, last))


@each_network
def test_labels_without_classes_are_refused(build, shape):
    x, c_noise, labels = inputs(shape)
    with pytest.raises(UserError, match="labels"):
        build()(x, c_noise, labels)


@each_network
def test_input_of_another_shape_is_refused(build, shape):
    _, c_noise, _ = inputs(shape)
    for bad in [(shape[0] + 1, *shape[1:]), (*shape, 3)]:
        with pytest.raises(UserError, match="network input"):
            build()(torch.zeros(4, *bad), c_noise)


@each_network
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": -1}, "num_classes"),
        ({"noise_embedding": "sinusiodal"}, "Did you mean 'sinusoidal'"),
    ],
)
def test_bad_options_that_all_share_are_refused(build, shape, options, message):
    with pytest.raises(UserError, match=message):
        build(**options)


@each_network
def test_batch_mates_change_nothing(build, shape, waken):
    network = waken(build(num_classes=CLASSES))
    x, c_noise, labels = inputs(shape, batch=5)
    together = network(x, c_noise, labels)
    for i in range(5):
        alone = network(x[i : i + 1], c_noise[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-5 * together.abs().max().item())


@each_network
def test_float64_agrees_with_float32_and_refines_it(build, shape, waken):
    network = waken(build(num_classes=CLASSES))
    x, c_noise, labels = inputs(shape)
    single = network(x, c_noise, labels)
    network = network.double()
    double = network(x.double(), c_noise.double(), labels)
    assert double.dtype == torch.float64
    scale = double.abs().max().item()
    assert 0 < (double - single).abs().max().item() < 1e-3 * scale
    # Float64 is kept all the way through: a step far below float32 rounding shows, and batch mates agree far below it.
    assert not torch.equal(network(x.double(), c_noise.double() + 1e-10, labels), double)
    alone = network(x[:1].double(), c_noise[:1].double(), labels[:1])
    torch.testing.assert_close(alone, double[:1], rtol=0, atol=1e-12 * scale)


@each_network
def test_gradients_reach_every_parameter(build, shape, waken):
    network = waken(build(num_classes=CLASSES))
    x, c_noise, labels = inputs(shape)
    network(x, c_noise, labels).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    classes = network.conditioning.classes.weight.grad
    assert (classes.abs().amax(dim=1) > 0).all()


@each_network
def test_vector_jacobian_product_with_x_matches_finite_differences(build, shape, waken):
    network = waken(build(num_classes=CLASSES)).double()
    x, c_noise, labels = inputs(shape, batch=2, dtype=torch.float64)
    u, v = (
        inputs(shape, batch=2, dtype=torch.float64, seed=2)[0],
        inputs(shape, batch=2, dtype=torch.float64, seed=3)[0],
    )
    x.requires_grad_()
    y = network(x, c_noise, labels[:2])
    (vjp,) = torch.autograd.grad(y, x, v, retain_graph=True)
    (again,) = torch.autograd.grad(y, x, v)
    assert torch.equal(vjp, again)
    h = 1e-5
    with torch.no_grad():
        difference = (network(x + h * u, c_noise, labels[:2]) - network(x - h * u, c_noise, labels[:2])) / (2 * h)
    torch.testing.assert_close((vjp * u).sum(), (difference * v).sum(), rtol=1e-6, atol=1e-8)


@each_network
def test_autocast_stays_near_float32(build, shape, waken):
    network = waken(build(num_classes=CLASSES))
    x, c_noise, labels = inputs(shape)
    exact = network(x, c_noise, labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = network(x, c_noise, labels).float()
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().mean()


# U-Nets are compiled in training/test_compiled.py, too.
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        pytest.param(*builder.values, id=builder.id, marks=() if builder.id in ("mlp", "modern dit") else SLOW)
        for builder in BUILDERS
    ],
)
def test_compiled_in_place_gives_the_same_with_one_graph_and_the_same_keys(build, shape, waken):
    network = waken(build(num_classes=CLASSES, noise_embedding="fourier"))
    x, c_noise, labels = inputs(shape)
    expected, keys = network(x, c_noise, labels), list(network.state_dict())
    # The run-time type checks of the test session are no part of what is compiled.
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        network.compile(backend="aot_eager", fullgraph=True)
        compiled = network(x, c_noise, labels)
        compiled.square().sum().backward()
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
    assert list(network.state_dict()) == keys
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(("build", "shape"), [BUILDERS[0], BUILDERS[2]])
def test_dropout_acts_in_training_only(build, shape, waken):
    network = waken(build(dropout=0.5))
    x, c_noise, _ = inputs(shape)
    assert torch.equal(network(x, c_noise), network(x, c_noise))
    network.train()
    assert not torch.equal(network(x, c_noise), network(x, c_noise))
    with pytest.raises(UserError, match="dropout"):
        build(dropout=1.0)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_a_signal_is_an_image_of_width_one(name, waken, monkeypatch):
    """In one level, the middle columns of 2-D kernels are all that acts on it; positions are those of one axis."""
    monkeypatch.setattr("diffusion.networks.dit.grid_positions", lambda *_: 0.0)
    options = {"unet": {"base_channels": 8, "multipliers": (1,), "blocks": 1, "attention": (7,), "image_size": (7,)},
               "dit": {"patch_size": 1, "width": 8, "depth": 1, "heads": 2, "image_size": (7,)}}[name]  # fmt: skip
    kind = {"unet": UNet, "dit": DiT}[name]
    image, signal = waken(kind(2, **{**options, "image_size": (7, 1)})).double(), kind(2, **options).eval().double()
    state = {key: value[..., value.shape[-1] // 2] if value.ndim == 4 else value
             for key, value in image.state_dict().items()}  # fmt: skip
    signal.load_state_dict(state)
    x, c_noise, _ = inputs((2, 7), dtype=torch.float64)
    torch.testing.assert_close(signal(x, c_noise), image(x[..., None], c_noise)[..., 0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("patch_size", [1, 2, 3])
@pytest.mark.parametrize("sides", [(7,), (5, 6), (4, 3, 5)])
def test_sides_that_no_patch_divides(patch_size, sides, waken):
    for network in (UNet(1, 8, (1, 2), 1, (), image_size=sides, patch_size=patch_size),
                    DiT(1, patch_size, width=8, depth=1, heads=2, image_size=sides)):  # fmt: skip
        x = torch.randn(2, 1, *sides)
        padded = layers.pad_to_multiple(x, network.size_multiple)
        y = waken(network)(x, torch.zeros(2))
        assert y.shape == x.shape
        assert torch.equal(y, layers.crop_like(network(padded, torch.zeros(2)), x))


@pytest.mark.parametrize("sides", [(6,), (4, 6), (2, 4, 6)])
def test_patches_come_back_and_are_those_of_torch(sides):
    x = torch.randn(2, 3, *sides)
    patches = layers.to_patches(x, 2)
    assert torch.equal(layers.from_patches(patches, 2), x)
    if len(sides) == 2:
        assert torch.equal(patches, torch.nn.functional.pixel_unshuffle(x, 2))


def test_more_than_three_sides_are_refused():
    with pytest.raises(UserError, match="1 to 3 sides"):
        UNet(1, image_size=(4, 4, 4, 4))
