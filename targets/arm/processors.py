"""The Arm processors that planish knows by name, and how a user names one: `cortex-a76`, `cortex-x2+nosve2`.

Features have LLVM's names. Clock, pipes and bandwidth are those of common phones with the processor and serve the
report's roofline only: width and number of the vector pipes from Arm's software optimisation guides.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from planish.ir import InputError

BASELINE = frozenset({"neon", "fullfp16", "dotprod"})
"""What every processor here has: Armv8.2-A with half precision and dot products, the phones of 2018 and later."""
SWITCHES = ("dotprod", "i8mm", "bf16", "sve2")
"""Features that a user may switch on and off."""


@dataclass(frozen=True)
class Processor:
    """One processor as a target.

    Attributes:
        name: as the user writes it.
        llvm_name: LLVM's name of it, which decides how instructions are ordered.
        features: what compiled code may use, in LLVM's spelling.
        gigahertz: the clock assumed.
        pipes: vector operations of 128 bits that start in one cycle.
        cores: cores of this kind in one machine.
        bytes_per_second: memory bandwidth assumed for all of them together.
    """

    name: str
    llvm_name: str
    features: frozenset[str]
    gigahertz: float
    pipes: int
    cores: int = 4
    bytes_per_second: float = 2e10

    def switched(self, feature: str, on: bool) -> Processor:
        """This processor with one feature more or less."""
        return replace(self, features=self.features | {feature} if on else self.features - {feature})


_V9 = BASELINE | {"i8mm", "bf16", "sve2"}
PROCESSORS = {
    p.name: p
    for p in (
        Processor("generic", "generic", BASELINE, 2.0, 1),
        Processor("cortex-a55", "cortex-a55", BASELINE, 2.0, 1, bytes_per_second=1e10),
        Processor("cortex-a76", "cortex-a76", BASELINE, 2.6, 2),
        Processor("cortex-a78", "cortex-a78", BASELINE, 2.8, 2),
        Processor("cortex-x2", "cortex-x2", _V9, 3.0, 4, cores=1, bytes_per_second=3e10),
        Processor("cortex-x4", "cortex-x4", _V9, 3.3, 4, cores=1, bytes_per_second=5e10),
        Processor("apple-m1", "apple-m1", BASELINE, 3.2, 4, bytes_per_second=6e10),
        Processor("apple-m2", "apple-m2", BASELINE | {"i8mm", "bf16"}, 3.5, 4, bytes_per_second=1e11),
    )
}
"""By name. `generic` is what artifacts for any of these phones are compiled for."""


def find_processor(text: str, also: Iterable[str] = ()) -> Processor:
    """The processor that a user names, with features switched: `cortex-a76`, `generic+i8mm`, `cortex-x2+nosve2`.

    `also` are other words that the user may have meant.

    Raises:
        InputError: for an unknown processor or feature, with the nearest known one.
    """
    name, *switches = re.split(r"\+", text or "generic")
    if name not in PROCESSORS:
        raise InputError(f"there is no Arm processor {name!r}; {nearest(name, [*PROCESSORS, *also])}")
    found = PROCESSORS[name]
    for switch in switches:
        feature = switch.removeprefix("no")
        if feature not in SWITCHES:
            raise InputError(f"there is no Arm feature {switch!r}; {nearest(feature, SWITCHES)}")
        found = found.switched(feature, on=not switch.startswith("no"))
    return replace(found, name=text or "generic")


def nearest(name: str, known: Iterable[str]) -> str:
    """What a user who wrote `name` may have meant, as the end of a refusal."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
