"""Linear operators: adjoints, pseudo-inverses and solutions against dense matrices, on shapes drawn at random."""

import pytest
import torch
from exact_posteriors import dense
from laws import F64, f64, name, seeded

from diffusion.denoisers.inverse_problems import Blur, Downsample, Grey, Mask
from diffusion.errors import UserError


def cases(seed):
    """One of each kind, and the shape of its data."""
    draw = torch.Generator().manual_seed(seed)

    def size(low, high):
        return int(torch.randint(low, high + 1, (), generator=draw))

    factor, channels = size(2, 3), size(1, 3)
    masked = (channels, size(2, 5), size(2, 5))
    return [
        (Mask(torch.rand(masked, generator=draw) < 0.5), masked),
        (Mask(torch.tensor([True, False, True])), (3,)),
        (Downsample(factor), (channels, factor * size(1, 3), factor * size(1, 3))),
        (Grey(), (3, size(1, 4), size(1, 4))),
        (Blur(0.3 + 0.3 * size(0, 4)), (channels, size(2, 7), size(2, 7))),
    ]


CASES = [pytest.param(*case, id=f"{name(case[0])[:12]}-{case[1]}") for seed in range(3) for case in cases(seed)]
every_operator = pytest.mark.parametrize(("operator", "shape"), CASES)


@every_operator
def test_the_adjoint(operator, shape):
    """<A x, y> = <x, A^T y>."""
    x = seeded(7, *shape)
    seen = operator(x)
    y = seeded(*seen.shape, seed=1)
    back = operator.adjoint(y)
    assert back.shape == x.shape
    torch.testing.assert_close((seen * y).flatten(1).sum(1), (x * back).flatten(1).sum(1), rtol=1e-12, atol=1e-12)


@every_operator
def test_the_pseudo_inverse(operator, shape):
    """The four equations of Moore and Penrose, and the dense one."""
    x = seeded(5, *shape)
    seen = operator(x)
    y = seeded(*seen.shape, seed=1)
    inverse = operator.pseudo_inverse
    torch.testing.assert_close(operator(inverse(seen)), seen)
    torch.testing.assert_close(inverse(operator(inverse(y))), inverse(y))
    a = dense(operator, shape)
    expected = torch.linalg.pinv(a, rtol=1e-5) @ y.flatten(1).T
    torch.testing.assert_close(inverse(y).flatten(1).T, expected, rtol=1e-6, atol=1e-8)
    for product in (a @ torch.linalg.pinv(a, rtol=1e-5), torch.linalg.pinv(a, rtol=1e-5) @ a):
        torch.testing.assert_close(product, product.T)


@every_operator
def test_the_solution_for_one_variance_and_for_one_a_sample(operator, shape):
    """(noise + signal A A^T) u = y."""
    a = dense(operator, shape)
    gram = a @ a.T
    y = seeded(*operator(seeded(3, *shape)).shape)
    signal, noise = f64([0.3, 1.0, 4.0]), f64([0.5, 0.01, 2.0])
    for v, n in ((signal, noise), (signal[1], noise[1]), (signal, noise[0])):
        u = operator.solve(y, v, n)
        expected = torch.stack(
            [
                torch.linalg.solve(n_i * torch.eye(len(a), dtype=F64) + v_i * gram, row)
                for v_i, n_i, row in zip(v.expand(3), n.expand(3), y.flatten(1), strict=True)
            ]
        )
        torch.testing.assert_close(u.flatten(1), expected, rtol=1e-9, atol=1e-9)


def test_what_the_operators_do_to_images():
    image = torch.arange(16, dtype=F64).reshape(1, 1, 4, 4)
    assert Downsample(2)(image).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    torch.testing.assert_close(Blur(5.0)(image), torch.full_like(image, 7.5), rtol=0, atol=0.01)  # almost the mean
    torch.testing.assert_close(Blur(0.01)(image), image, rtol=0, atol=0.01)  # almost nothing
    white = torch.ones(1, 3, 2, 2, dtype=F64)
    torch.testing.assert_close(Grey()(white), white[:, :1])
    kept = torch.tensor([[[True, False], [False, True]]])
    assert Mask(kept)(f64([[[[1.0, 2.0], [3.0, 4.0]]]])).tolist() == [[1.0, 4.0]]


def test_the_blur_is_a_convolution_with_a_gaussian():
    point = torch.zeros(1, 1, 33, 33, dtype=F64)
    point[..., 16, 16] = 1.0
    spread = Blur(2.0, floor=1e-12)(point)[0, 0]
    steps = torch.arange(33, dtype=F64) - 16
    kernel = torch.exp(-0.5 * (steps / 2.0) ** 2)
    kernel = kernel / kernel.sum()
    torch.testing.assert_close(spread, kernel[:, None] * kernel, rtol=0, atol=1e-8)


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match="keeps nothing"):
        Mask(torch.zeros(3, dtype=torch.bool))
    with pytest.raises(UserError, match=r"shape \(3,\), for data of shape \(4,\)"):
        Mask(torch.tensor([True, False, True]))(seeded(2, 4))
    with pytest.raises(UserError, match="does not divide an image of 3 x 4"):
        Downsample(2)(seeded(1, 1, 3, 4))
    with pytest.raises(UserError, match="grey: found images of 1 channels; needs 3"):
        Grey()(seeded(1, 1, 2, 2))
    with pytest.raises(UserError, match="std: found 0"):
        Blur(0.0)
    with pytest.raises(UserError, match="factor: found 0"):
        Downsample(0)
