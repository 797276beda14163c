"""To which size a batch is padded so that a row's bits do not depend on its place."""

from __future__ import annotations

MULTIPLE = 4


def padded(rows: int) -> int:
    """The batch for ``rows`` rows: the next multiple of four, one and two excepted.

    Libraries cut a matrix product into tiles of a few rows and treat what is left over by another kernel, whose sums are taken
    in another order: at 3 and 5 rows (6 and 10 under guidance) a row's last bits depended on where it stood, on two threads
    in float32; whole tiles hide no such seam. tests/test_padding.py measures it.
    """
    return rows if rows <= 2 else -(-rows // MULTIPLE) * MULTIPLE
