"""How files are read: in which levels, and with which channels."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import UserError


class EightBitsError(UserError):
    """Files of which none has the more than 8 bits that are needed."""


@dataclass(frozen=True)
class Alike:
    """How files are read: as a configuration says, or so that they are as images that a model was trained on.

    Args:
        bits: How many bits the values of 16-bit files use; None: 16.
        whole: Keep all their 2^bits levels, rather than the upper 8 bits.
        every: Keep all channels of files (`channels`), rather than grey or colour on white.
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
    def used(self) -> int:
        """The bits that 16-bit files use."""
        return 16 if self.bits is None else self.bits

    @property
    def levels(self) -> int:
        """The levels that images have."""
        return 2**self.used if self.whole else 256

    @property
    def most(self) -> int:
        """The value of white."""
        return self.levels - 1


EIGHT_BITS = Alike()
