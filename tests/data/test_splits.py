"""Splits: disjoint, complete, fixed."""

import hashlib

import pytest

from diffusion.data.splits import hashed_order, split_rows, validation_size
from diffusion.errors import UserError


def test_order_is_the_sorting_of_known_digests() -> None:
    keys = ["a", "b", "c"]
    digests = {hashlib.sha256(key.encode()).hexdigest(): key for key in keys}
    assert [keys[row] for row in hashed_order(keys)] == [digests[digest] for digest in sorted(digests)]


@pytest.mark.parametrize("n", [3, 4, 10, 1000])
def test_a_pool_is_split_completely(n: int) -> None:
    rows, _ = split_rows([str(i) for i in range(n)], {"train": range(n)}, None, 0.1)
    assert sorted(rows["train"] + rows["validation"] + rows["test"]) == list(range(n))
    assert min(len(part) for part in rows.values()) >= 1
    if n >= 10:
        assert len(rows["test"]) == len(rows["validation"]) == n // 10


def test_the_split_follows_the_key_and_not_the_row() -> None:
    keys = [f"{i}.png" for i in range(40)]
    rows, _ = split_rows(keys, {"train": range(40)}, None, 0.1)
    backwards, _ = split_rows(keys[::-1], {"train": range(40)}, None, 0.1)
    for split, part in rows.items():
        assert {keys[row] for row in part} == {keys[::-1][row] for row in backwards[split]}


def test_splits_of_the_source_are_kept() -> None:
    parts = {"train": range(20), "validation": range(20, 23), "test": range(23, 30)}
    keys = [str(i) for i in range(30)]
    rows, _ = split_rows(keys, parts, None, 0.1)
    assert rows == {split: list(part) for split, part in parts.items()}
    with pytest.raises(UserError, match="brings its own"):
        split_rows(keys, parts, 2, 0.1)
    del parts["validation"]
    rows, _ = split_rows(keys, parts, 4, 0.1)
    assert rows["test"] == list(range(23, 30))
    assert len(rows["validation"]) == 4
    assert sorted(rows["train"] + rows["validation"]) == list(range(20))


def test_sizes() -> None:
    assert validation_size(None, 60_000, 60_000, 5_000 / 60_000) == 5_000
    assert validation_size(0.25, 100, 90, 0.1) == 25
    assert validation_size(0, 100, 90, 0.1) == 0
    assert validation_size(89, 100, 90, 0.1) == 89
    for value in (90, -1, 1.0, 0.0, 0.95):
        with pytest.raises(UserError, match=r"data\.validation"):
            validation_size(value, 100, 90, 0.1)


def test_too_few_rows() -> None:
    with pytest.raises(UserError, match="2 to split: too few samples"):
        split_rows(["a", "b"], {"train": range(2)}, None, 0.1)
