"""Numbers as other libraries hold them: taken as meant, or refused; warnings are errors here."""

import numpy as np
import pytest
import torch

from diffusion.numerics.arrays import REFUSED, as_tensor, described

X = np.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (X[:, ::-1], X[:, ::-1].copy()),
        (X.astype(">f8"), X),
        (X.astype(">i2"), X.astype(np.int16)),
        (X.astype(np.longdouble), X),
        (np.broadcast_to(X[0], (3, 4)), np.stack([X[0]] * 3)),
        (list(X), X),
        (list(torch.from_numpy(X)), X),
        (tuple(torch.from_numpy(X)), X),
        (X.tolist(), X),
        (X[1, 2], X[1, 2]),
        (X > 3, X > 3),
    ],
    ids=[
        "mirrored",
        "big-endian",
        "whole",
        "long",
        "read-only",
        "arrays",
        "tensors",
        "tuple",
        "list",
        "number",
        "bool",
    ],
)
def test_the_numbers_are_those_of_the_array(value, wanted):
    found = as_tensor(value)
    np.testing.assert_array_equal(found.numpy(), wanted)
    assert as_tensor(value, torch.float64).dtype == torch.float64


def test_what_has_no_numbers_is_refused_and_described_in_a_line():
    sparse = torch.eye(2).to_sparse()
    several = {
        "a tensor of no values (device meta)": torch.zeros(2, device="meta"),
        "a tensor of layout torch.sparse_coo": sparse,
        "an array of object (2,)": np.array([None, "x"], dtype=object),
        "an array of <U3 (2,)": np.array(["cat", "dog"]),
        "'a word'": "a word",
    }
    for words, value in several.items():
        with pytest.raises(REFUSED):
            as_tensor(value)
        assert described(value) == words
    with pytest.raises(REFUSED):
        as_tensor([torch.zeros(2), torch.zeros(3)])


def test_an_array_that_gives_no_numbers_is_described_by_what_it_is():
    """As those of CuPy, which are on a GPU."""

    class Array:
        def __array__(self):
            raise TypeError("implicit conversion is not allowed")

    with pytest.raises(TypeError):
        as_tensor(Array())
    assert described(Array()) == "a Array"
