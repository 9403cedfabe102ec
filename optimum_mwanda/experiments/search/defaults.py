"""What a search allows and tries by default."""

MAX_DEGRADATION = 0.05
BOUNDS = (0.1, 0.9)
RESOLUTION = 0.01
