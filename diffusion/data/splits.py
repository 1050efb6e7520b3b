"""Train, validation and test, fixed once and for all.

Rows are sorted by the SHA-256 of their key (the file's name, or the row's index written in decimal): a pseudo-random
order that depends neither on a seed nor on a library's version, so that figures of two runs are of the same test set.
The first rows of this order are the test set, the next ones the validation set, the rest is for training; each keeps
its old order.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from ..config import SPLITS
from ..errors import UserError
from ..numerics.random import hashed_order

# What people call the splits, apart from words that only say what is in them (`train_images`, `Test Set`).
_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("validation", "validate", "valid", "val", "dev", "devel", "development", "eval", "evaluation"),
                    "validation"),
    **dict.fromkeys(("test", "testing", "tst", "holdout", "heldout"), "test"),
}  # fmt: skip
_FILLERS = ("set", "data", "dataset", "split", "image", "img", "picture", "photo", "sample", "file", "folder")


# The rule of a split that the source has, in words.
GIVEN = "as given by the source"


def split_of(name: str) -> str | None:
    """The split that a folder, an archive or an array is called after; None for any other name.

    Case, numbers, punctuation, plurals and words like `set` and `images` make no difference.
    """
    found = "".join(word for word in _words_of(name) if word not in _FILLERS)
    for filler in ("", *_FILLERS):
        if (split := _WORDS.get(found.removesuffix(filler))) is not None:
            return split
    return None


def splits_of(names: Collection[str]) -> dict[str, str]:
    """The splits that names stand for; names of no split are left out.

    Where each is a split but for words that all share (`seg_train` and `seg_test`), these make no difference.
    """
    found = {name: split for name in names if (split := split_of(name)) is not None}
    if found:
        return found
    shared: dict[str, tuple[str, list[str]]] = {}
    for name in names:
        words = _words_of(name)
        of_split = [word for word in words if word in _WORDS]
        if len(of_split) != 1:
            return {}
        shared[name] = _WORDS[of_split[0]], [word for word in words if word not in _WORDS]
    alike = len({tuple(rest) for _, rest in shared.values()}) == 1
    return {name: split for name, (split, _) in shared.items()} if alike and len(shared) > 1 else {}


def _words_of(name: str) -> list[str]:
    """The words of a name in small letters, without the s of a plural."""
    return [word.lower().removesuffix("s") for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]


def validation_size(validation: int | float | None, n: int, available: int, default_fraction: float) -> int:
    """Return the number of validation rows to hold out.

    Args:
        validation: A count (int), a fraction of `n` in (0, 1) (float), or None for `default_fraction` of `n`.
        n: Number of training rows of the source.
        available: Number of these that are left once a test set has been taken out.
        default_fraction: See `validation`.

    Raises:
        UserError: Where that is negative, not a fraction, or leaves nothing to train on.
    """
    if validation is None:
        # A default can never be what empties the training set: it is at most half of what there is.
        size = min(max(1, round(default_fraction * n)), available // 2)
    elif isinstance(validation, float):
        if not 0 < validation < 1:
            raise UserError(
                f"data.validation: {validation} is not a fraction between 0 and 1; a number of samples is an integer."
            )
        size = round(validation * n)
    else:
        size = validation
    if not 0 <= size < available:
        raise UserError(
            f"data.validation: cannot take {size} samples out of {available}; accepted: 0 to {available - 1}."
        )
    return size


def split_rows(
    keys: Sequence[str],
    parts: Mapping[str, range],
    validation: int | float | None,
    default_fraction: float,
    test_fraction: float = 0.1,
) -> tuple[dict[str, list[int]], str]:
    """Assign each row to one split; what the source does not give is taken out of its training rows.

    Args:
        keys: One text a row.
        parts: Rows that the source assigns: "train", and where it has them "validation" and "test".
        validation: See `validation_size`.
        default_fraction: Default size of the validation split, relative to the training rows given.
        test_fraction: Size of the test split where the source has none.

    Returns:
        The rows of "train", "validation" and "test" (each in ascending order), and the rule in words.

    Raises:
        UserError: Where there are too few rows to split, or `validation` contradicts the source or the number of rows.
    """
    given = parts["train"]
    n = len(given)
    rest = [given[i] for i in hashed_order([keys[row] for row in given])]
    rows = {split: list(parts[split]) for split in SPLITS[1:] if split in parts}
    needed = 3 - len(rows)
    if n < needed:
        raise UserError(f"data.path: {n} to split: too few samples, at least {needed} are needed.")

    rules = [f"{split}: {GIVEN}" for split in rows]
    if "test" not in parts:
        count = max(1, round(test_fraction * n))
        rows["test"], rest = sorted(rest[:count]), rest[count:]
        rules.append(f"test: first {count} of {n} in SHA-256 order")
    if "validation" not in parts:
        count = validation_size(validation, n, len(rest), default_fraction)
        rows["validation"], rest = sorted(rest[:count]), rest[count:]
        rules.append(f"validation: {count} of {n} that follow in SHA-256 order")
    elif validation is not None:
        raise UserError("data.validation: the source brings its own validation set; leave this setting out.")
    rows["train"] = sorted(rest)
    rules.append("train: the rest")
    return rows, "; ".join(rules)
