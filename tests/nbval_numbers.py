"""For nbval: numbers in the notebooks' outputs agree where they differ by no more than processors do.

`PYTHONPATH=tests pytest -p nbval_numbers --nbval …`, see NBVAL in the Makefile. One machine prints the same digits in every run
(`make determinism`), another the same but for a few last ones: its instructions round elsewhere, and a step such as a ReLU,
a rank or a rounded print makes of that a digit. So numbers with decimals agree within one unit of the last printed digit, or
within `TOLERANCE` of their size; whole numbers and all words must be the same.
"""

import re
from decimal import Decimal

from nbval.plugin import IPyNbCell

TOLERANCE = Decimal("0.01")
_NUMBER = re.compile(r"([-+−]?\d+\.\d+(?:e[-+]\d+)?)")


def agree(ref: str, test: str) -> bool:
    """Whether two outputs say the same; spaces may differ in number, as they pad numbers to a width."""
    ours, theirs = (_NUMBER.split("\n".join(" ".join(line.split()) for line in s.splitlines())) for s in (ref, test))
    if ours[::2] != theirs[::2]:
        return False
    return all(_near(a, b) for a, b in zip(ours[1::2], theirs[1::2], strict=True))


def _near(ref: str, test: str) -> bool:
    a, b = (Decimal(s.replace("−", "-")) for s in (ref, test))
    unit = max(Decimal(1).scaleb(n.as_tuple().exponent) for n in (a, b))
    return abs(a - b) <= max(unit, TOLERANCE * abs(a))


class Output(str):
    """A text that equals those it agrees with."""

    def __eq__(self, other):
        return isinstance(other, str) and agree(self, other)

    def __ne__(self, other):
        return not self == other

    __hash__ = None


_sanitize = IPyNbCell.sanitize
IPyNbCell.sanitize = lambda cell, s: Output(_sanitize(cell, s)) if isinstance(s, str) else s
