"""Presets: what the name of a method means, in settings. `docs/guide.md` says what is as published and what is not."""

from typing import Any

_ALONE: dict[str, Any] = {"refinement": "none", "reconstruction": "none"}
_UPDATES: dict[str, Any] = {"refinement": "none", "reconstruction": "obs", "damping": 0.01}
_WANDA: dict[str, Any] = {"criterion": "wanda", "group": "row", **_ALONE}

METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"criterion": "magnitude", "group": "matrix", "allocation": "uniform", **_ALONE},
    "wanda": {**_WANDA, "allocation": "uniform"},
    "ria": {"criterion": "ria", "ria_exponent": 0.5, "group": "matrix", "allocation": "uniform", **_ALONE},
    "sparsegpt": {"criterion": "sparsegpt", "group": "matrix", "allocation": "uniform", **_UPDATES},
    "owl": {**_WANDA, "allocation": "owl", "allocation_strength": 0.08, "owl_multiplier": 5.0},
    "alphapruning": {**_WANDA, "allocation": "alpha", "allocation_strength": 0.3},
    "dlp": {**_WANDA, "allocation": "dlp", "allocation_strength": 0.15},
    "alps": {"criterion": "alps", "group": "matrix", "allocation": "uniform", **_UPDATES},
    "m-wanda": {
        "criterion": "mwanda",
        "base": "wanda",
        "variance": "std",
        "variance_weight": 0.5,
        "activation": "above_rms",
        "activation_threshold": 0.1,
        "activation_exponent": 0.5,
        "group": "row",
        "allocation": "cwl",
        "allocation_strength": 0.04,
        "cwl_direction": "shared",
        **_ALONE,
    },
    "defaults": {},
}
"""Name to what decides which weights go and what becomes of the others; grids are made of these."""

_POOLED: dict[str, Any] = {"language_weights": "proportional", "calibration": "sequential"}
_READING: dict[str, dict[str, Any]] = {
    "magnitude": {},
    "m-wanda": {"language_weights": "equal", "calibration": "sequential"},
    "defaults": {},
}
"""How the text is read, where not as published code does: all tokens alike, block after block behind pruned ones."""

PRESETS: dict[str, dict[str, Any]] = {
    name: {**settings, **_READING.get(name, _POOLED)} for name, settings in METHODS.items()
}
"""Name to settings of `MWandaConfig`; the others have their defaults."""


def preset_settings(name: str) -> dict[str, Any]:
    """The settings that a preset sets.

    Raises:
        ValueError: If there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"There is no preset {name!r}. Presets are: {', '.join(map(repr, PRESETS))}.")
    return dict(PRESETS[name])
