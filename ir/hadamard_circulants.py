"""Hadamard matrices of order 4 m made of four circulant matrices of odd order m, for orders that Paley's constructions miss.

First rows of 1 and -1 whose periodic autocorrelations add up to zero at every shift, that is A A^T + B B^T + C C^T + D D^T =
4 m I, go into Goethals and Seidel's array. Where all four are symmetric, as for m = 23 and 29, they are Williamson's.

Those of m = 47, 59, 89 and 107 are made of Turyn-type sequences, as published, through T-sequences; those of m = 81 of
complementary sequences of length 80 (Golay); the others come from a search among rows that some multipliers modulo m leave
as they are.

Sources: Williamson, Hadamard's determinant theorem and the sum of four squares (1944); Goethals and Seidel, A skew Hadamard
matrix of order 36 (1970); Turyn, Hadamard matrices, Baumert-Hall units, four-symbol sequences, pulse compression, and surface
wave encodings (1974); Kharaghani and Tayfeh-Rezaie, A Hadamard matrix of order 428 (2005); Best, Djokovic, Kharaghani and
Ramp, Turyn-type sequences: classification, enumeration, and construction (2013).
"""

from __future__ import annotations

import torch

_DIGITS = (
    "16c5900a3a9669a3a0095c6",
    "209636cc3a03c9999c30a3cc63690",
    "ab6206988208d7b9b09685b050726bd6658bd80",
    "4be9b916e01b9000b0699be1106e6661e96b091e1be",
    "77778878787877882222dd22d2d2dd2111144be41ee4441",
    "777787888877887887782222d222ddd2d22d2dd11111be141be4b1b4b41",
    "7b2ce8d33bb059b8b52d20c50b0c2bbd2300e3500dc5d803ce2e9cd0e2202b53e",
    "7458a8158fe855a1dea181e2e2ef8498412e0490135384f22a382a22d450ffda2f9",
    "43373c7c30cc71cc3a07ccc77b1bc1c13aab037cc0c1ca7c7bb11ab3c01acb1a30aba0b00",
    "722d2d2dd2222d22222dd22d2d2dd22dd2ddddd2211e1e1ee1111e11111eeee1e1e11ee11e11111ee",
    "777777887877887778888787878778222222dd2dd22ddd22d22d2d2d2dd111111e41b114ebe414b14ebbb4b41",
    "dff3f437f149397cf8174292379c72caf48f18744428982f347199c87227c2a4f84488f4198272484849228892822",
    "a28a70fa958460f40fc405303fbb663087642485b8c757b545acf9f8383a588b0f98353088885740f40a23924895f4c233c6f",
    "787777787887777877787788777878878887222d2ddddd22dd2d222dd2d2d222d2222d2141bbbb44b4b4ebeeb1441b11e1111eeeb1e",
    "0b0ad84d61fe8566bb384858b518b8b104a4e8f223bf1bbfab1536f406b2053ed8244e245ff2418886edad4e34a3a8454d003a12e0bb4b86d",
    "733b3bb033bcb4033534baccb34b0c3b345a3c4cbba3cbc4ba3843b40cc4"
    "3bb03c4354ac3bcb4accb3b4a834c4b0c34cbbac3484403cbc440cc4c44",
    "711b1fb31cfcb2371cc4ffc8b42c32701fc2cf42fffbcb81bc4c2bc438247108"
    "1bf3cc27c4f84c20f2f2fbb1ccb48418b3c748c022b1c448378021487018088",
    "44159aa6047a79b1ac11cbf4c9256199f9969f1a97694a1c96005fa2ba950c264f2"
    "f25bf0c4716f124ccba0a157b9a9a27baa2a7ab4f705260aa09a6a9995cb1174a5",
)

FIRST_ROWS = {4 * len(digits): digits for digits in _DIGITS}
"""By order, m digits: the bits of digit n, the highest first, are the n-th elements of the four rows, set for -1."""


def of_circulants(order: int) -> torch.Tensor:
    """The Hadamard matrix of an order of `FIRST_ROWS`, int8 [order, order]."""
    digits = torch.tensor([int(digit, 16) for digit in FIRST_ROWS[order]])
    place = torch.arange(len(digits))
    shifts = (place[None] - place[:, None]) % len(digits)
    a, b, c, d = ((1 - 2 * (digits >> bit & 1)).to(torch.int8)[shifts] for bit in (3, 2, 1, 0))
    # With its columns reversed, a circulant X R is symmetric, and A (X R)^T = (X R) A^T for every circulant A.
    blocks = (
        (a, b.flip(1), c.flip(1), d.flip(1)),
        (-b.flip(1), a, d.T.flip(1), -c.T.flip(1)),
        (-c.flip(1), -d.T.flip(1), a, b.T.flip(1)),
        (-d.flip(1), c.T.flip(1), -b.T.flip(1), a),
    )
    return torch.cat([torch.cat(row, 1) for row in blocks])
