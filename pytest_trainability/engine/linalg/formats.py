"""Narrow floating-point formats, and where a cast to them flushes and overflows."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["BFLOAT16", "E4M3", "E5M2", "FLOAT16", "Format"]


@dataclass(frozen=True, slots=True)
class Format:
    """A binary floating-point format. A cast to it rounds to nearest, ties to even."""

    name: str
    digits: int
    """Number of bits of the significand, including the implicit one."""
    lowest: int
    """Exponent of the smallest subnormal number, a power of two."""
    highest: int
    """Exponent of the smallest power of two above the largest finite number."""
    codes_of_nan: int = 0
    """Number of codes below that power of two which stand for NaN instead of a number."""

    @property
    def overflow(self) -> float:
        """Smallest float32 number that rounds beyond the largest finite one."""
        last = 2**self.digits - 1 - self.codes_of_nan
        middle = math.ldexp(last + 0.5, self.highest - self.digits)
        # The largest finite number is even if its last bit is 0. Then it gets the tie.
        return middle if last % 2 else middle + math.ldexp(1.0, self.highest - 24)

    @property
    def underflow(self) -> int:
        """Exponent of the largest number that rounds to zero, a power of two."""
        return self.lowest - 1


FLOAT16 = Format("float16", digits=11, lowest=-24, highest=16)
BFLOAT16 = Format("bfloat16", digits=8, lowest=-133, highest=128)
E4M3 = Format("E4M3", digits=4, lowest=-9, highest=9, codes_of_nan=1)
"""The 8-bit format for activations and weights (``torch.float8_e4m3fn``). Its largest number is 448."""
E5M2 = Format("E5M2", digits=3, lowest=-16, highest=16)
"""The 8-bit format for gradients (``torch.float8_e5m2``). Its largest number is 57344."""
