"""ATen compositions written out in simpler operations, by kind; `DECOMPOSITIONS` joins them."""

from __future__ import annotations

from planish.codegen.decompositions.linear_algebra import LINEAR_ALGEBRA
from planish.codegen.decompositions.model import MODEL
from planish.codegen.decompositions.normalisation import NORMALISATION
from planish.codegen.decompositions.statistics import STATISTICS
from planish.codegen.legalise import Decomposition

DECOMPOSITIONS: dict[str, Decomposition] = {**MODEL, **LINEAR_ALGEBRA, **NORMALISATION, **STATISTICS}

__all__ = ["DECOMPOSITIONS"]
