"""Ids, sentinels and shape letters that every layer shares.

Shape letters, used in docstrings and as name suffixes where axes move:

==  ==================================================================
B   history rows of a batch (one user each)
T   history tokens of a row, padded on the right
Q   requests of a row, padded on the right (a request is a moment at which the system answers)
M   tokens of a reasoning block
K   reasoning steps
D   model width
H   attention heads
N   catalogue items, the two reserved rows included
U   unique item ids of a step
C   candidates of one ranking group
S   tasks of the funnel
==  ==================================================================

Ids outside the library are *external* (strings or integers as in the logs); inside they are
*internal*: contiguous integers, 0 for padding, 1 for "unknown", known values from 2 on.
"""

from typing import Final

PAD: Final = 0
UNKNOWN: Final = 1
FIRST_ID: Final = 2
"""The first internal id that stands for a known external value."""

BOUNDARY: Final = 2
"""The behavior code of the token that closes an interaction block; behaviors start at 3."""
FIRST_BEHAVIOR: Final = 3

IGNORE: Final = -100
"""A target that no loss counts."""

NUM_GAPS: Final = 40
"""Buckets of a time gap: 0 = none or unknown, then one a power of two of seconds."""
