"""Block formats as data: an element format, and scales that are shared by blocks. No torch here.

The rules are those of the OCP Microscaling Formats (MX) specification 1.0, with the variants of
its scale rule that are in use, and of NVFP4 (arXiv 2509.25149).
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

from attrs import field, frozen

from altcore.builtin_types import as_builtin
from altcore.errors import BadInput, shown
from altcore.formats.base import Format, check_name

ScaleRule = Literal["floor", "ceil", "rceil", "even", "amax", "power-of-two", "two-level"]
RULES: tuple[str, ...] = get_args(ScaleRule)


@frozen
class BlockFormat:
    """An element format whose values are multiplied by a scale for each block.

    ``rule`` says how a block's scale comes of its largest magnitude, amax:

    floor
        ``2^(floor(log2 amax) - emax)``, emax being the exponent of the element's largest value.
        The OCP rule; values above the element's maximum are clipped.
    ceil
        the same with ceil: nothing is clipped.
    rceil
        the smallest power of two that holds amax, by exact comparison.
    even
        floor, after rounding amax to the element's mantissa.
    amax
        ``amax / max`` in float32, so that amax meets the element's maximum; 1 for a block of zeros.
    power-of-two
        rceil within float32's normal range, 2^-126 to 2^126; 1 for a block of zeros.
    two-level
        ``scale(amax / max / g)`` in ``scale_format``, under one float32 scale of the tensor,
        ``g = amax of the tensor / (max of scale_format * max of element)``.

    The other powers of two are those of E8M0, 2^-127 to 2^127. ``block`` counts elements along the
    product's reduction axis; ``is_square`` makes blocks of block × block instead.
    """

    name: str = field(validator=check_name)
    element: Format
    block: int = field(default=32, converter=as_builtin)
    rule: ScaleRule = "floor"
    scale_format: Format | None = None
    is_square: bool = field(default=False, converter=as_builtin)

    def __attrs_post_init__(self) -> None:
        if not isinstance(self.element, Format):
            raise BadInput(
                f"format {self.name}: its element is a Format, not {shown(self.element)}"
            )
        if type(self.block) is not int or self.block < 1:
            raise BadInput(
                f"format {self.name}: a block holds at least 1 element, not {shown(self.block)}"
            )
        if self.rule not in RULES:
            raise BadInput(f"format {self.name}: the rule is one of {', '.join(RULES)}")
        if not isinstance(self.scale_format, Format | None):
            raise BadInput(
                f"format {self.name}: its scale_format is a Format, not {shown(self.scale_format)}"
            )
        if not isinstance(self.is_square, bool):
            raise BadInput(
                f"format {self.name}: is_square is true or false, not {shown(self.is_square)}"
            )
        if (self.rule == "two-level") != (self.scale_format is not None):
            raise BadInput(f"format {self.name}: two-level, and only it, has a scale_format")

    def to_plain(self) -> dict[str, Any]:
        """Return the format as data that YAML and JSON can hold; `from_plain` gives it back.

        Its element and scale are whole, not names. Raises `BadInput` as theirs do.
        """
        plain: dict[str, Any] = {
            "name": self.name,
            "element": self.element.to_plain(),
            "block": self.block,
            "rule": self.rule,
        }
        if self.scale_format is not None:
            plain["scale"] = self.scale_format.to_plain()
        if self.is_square:
            plain["square"] = True
        return plain

    def along(self, length: int) -> int:
        """How many elements a block spans along an axis of ``length``, which may be less."""
        return min(self.block, max(length, 1))

    @property
    def element_exponent(self) -> int:
        """The exponent of the element's largest value: emax of the MX specification."""
        return math.frexp(self.element.max)[1] - 1

    @property
    def next_from(self) -> tuple[float, bool]:
        """The fraction, from 1/2 to 1, of amax beyond which the rule takes the next power of two.

        Also at which, if the second is true; 1 and false mean never. For rules of powers of two.
        """
        if self.rule == "even":
            precision = self.element.precision or self.element.bits
            return 1 - 2.0 ** -(precision + 1), True  # halfway to the next power
        if self.rule in ("rceil", "power-of-two"):
            return math.frexp(self.element.max)[0], False
        return 0.5 if self.rule == "ceil" else 1.0, False

    @property
    def largest(self) -> float:
        """The largest product of an element and a block's scale in ``scale_format``."""
        return self.element.max * (self.scale_format.values[-1] if self.scale_format else 1.0)

    @property
    def bits(self) -> float:
        """Bits an element, its share of the block's scale included."""
        plain = 32 if self.rule == "amax" else 8
        scale = plain if self.scale_format is None else self.scale_format.bits
        count = self.block**2 if self.is_square else self.block
        return self.element.bits + scale / count

    def __str__(self) -> str:
        return self.name


AnyFormat: TypeAlias = Format | BlockFormat
"""What a name may mean: a format of single numbers, or of blocks that share scales."""
