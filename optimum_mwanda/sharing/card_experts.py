"""What a model card says about experts that calibration barely reached."""

from ..configuration import MWandaConfig
from ..record.parts import RecordedExperts
from ..utils import abridged
from .card_text import Markdown, code_span

_POLICIES = {
    "magnitude": "were pruned by magnitude alone",
    "shared": "were pruned by the pooled statistics of all experts in their layer, or by magnitude if there were none",
    "skip": "were left dense",
    "error": "were refused",
}


def describe_experts(found: RecordedExperts | None, settings: MWandaConfig) -> Markdown | None:
    """Says in a sentence or two which experts lacked calibration text.

    Args:
        found: `experts` of the record; None if it has none.
        settings: The settings in the record.

    Returns:
        The sentences; None if every language reached every expert.
    """
    if found is None:
        return None
    sentences = []
    if found.lacking:
        sentences.append(
            f"{found.lacking} of {found.count} experts got fewer than {found.wanted} calibration tokens, "
            f"and {_POLICIES[settings.experts_policy]}."
        )
        if settings.updates_matrices and settings.experts_policy != "skip":
            sentences.append("The weights that these experts kept were not updated.")
    if found.unreached:
        missed = abridged([f"{code_span(language)} ({count})" for language, count in found.unreached.items()], 20)
        sentences.append(
            f"Some of the {found.count} experts got no token of a language; their number in brackets: {missed}."
        )
    return Markdown("\n".join(sentences)) if sentences else None
