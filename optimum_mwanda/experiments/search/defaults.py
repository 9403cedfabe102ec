"""What a search allows and tries, unless it is told otherwise."""

MAX_DEGRADATION = 0.05
BOUNDS = (0.1, 0.9)
RESOLUTION = 0.01
