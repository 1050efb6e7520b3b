"""What conftest.py makes of jaxtyping's checks: each combination of shapes and types is checked once."""

import beartype
import jaxtyping
import pytest
import torch
from jaxtyping import Float, Int
from torch import Tensor

GOOD = torch.zeros(2), torch.zeros(2, 3)


def first(x: Float[Tensor, " b"], y: Float[Tensor, " b d"], count: int = 2) -> Float[Tensor, " b"]:
    return x[:count]


def total(x: Float[Tensor, " b"]) -> Int[Tensor, ""]:
    return x.sum()


def two(x: Float[Tensor, " b"], count: int) -> Float[Tensor, " {count}"]:
    return x[:2]


def checked(function):
    return jaxtyping.jaxtyped(function, typechecker=beartype.beartype)


def test_what_is_wrong_is_found_whatever_was_right_before():
    function = checked(first)
    for _ in range(3):
        assert function(*GOOD).shape == (2,)
    for bad in ((torch.zeros(3), GOOD[1]), (GOOD[0].int(), GOOD[1]), (GOOD[0], [GOOD[1]]), (*GOOD, "2")):
        for _ in range(2):
            with pytest.raises(TypeError):
                function(*bad)


def test_a_result_is_checked_with_the_arguments():
    with pytest.raises(TypeError):
        checked(total)(torch.zeros(2))
    function = checked(first)
    assert function(*GOOD, 2).shape == (2,)
    function(*GOOD, 1)  # of other kind than the first result: from here on each is checked
    with pytest.raises(TypeError):
        function(*GOOD, 1)
    assert function(*GOOD, 2).shape == (2,)


def test_a_side_that_a_number_states_is_checked_for_each_number():
    function = checked(two)
    for _ in range(2):
        assert function(GOOD[0], 2).shape == (2,)
        for bad in (1, 3):
            with pytest.raises(TypeError):
                function(GOOD[0], bad)
            with pytest.raises(TypeError):
                function(GOOD[0], count=bad)
