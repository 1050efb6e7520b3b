"""Files in the levels and the channels of images that are there: those that a model was trained on."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UserError


class EightBitsError(UserError):
    """Files of which none has the more than 8 bits that are needed."""


@dataclass(frozen=True)
class Alike:
    """How files are read, so that they are as images that are there.

    Args:
        bits, whole, every: As `decoding.decode` and `image_files.load_files`.
    """

    bits: int | None = None
    whole: bool = False
    every: bool = False

    @classmethod
    def of(cls, channels: int, levels: int, bits: int | None = None) -> Alike:
        """As images of so many channels and levels; `bits` is `data.bits`, with which these were read.

        Raises:
            UserError: For more than 256 levels that are not those of whole bits.
        """
        whole = levels > 256
        if whole and levels & (levels - 1):
            raise UserError(
                f"levels: found {levels}; image files hold a power of two, as {2 ** levels.bit_length()}, where they "
                "have more than 256"
            )
        return cls(levels.bit_length() - 1 if whole else bits, whole, channels not in (1, 3))

    @property
    def most(self) -> int:
        """The value of white."""
        return 2 ** (self.bits or 16) - 1 if self.whole else 255


EIGHT_BITS = Alike()
