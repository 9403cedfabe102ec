"""How a search for a plan goes on, unless it is told otherwise."""

from typing import Literal

ProposedBy = Literal["slopes", "exchanges"]
PROPOSED_BY: ProposedBy = "slopes"
CANDIDATES = {"slopes": 24, "exchanges": 400}
"""How many plans are tried, by what proposes them."""
STEP = 0.05
CHUNKS = 2
TOKENS = 128
