"""How a search for a plan goes on, unless it is told otherwise."""

CANDIDATES = 400
STEP = 0.05
CHUNKS = 2
TOKENS = 128
