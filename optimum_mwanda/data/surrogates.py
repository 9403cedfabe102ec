"""Strings that are no text: half of a character is missing, and neither a tokenizer nor a file takes the rest."""

_SHOWN = 30


def check_whole(text: str, where: str) -> None:
    """Checks that a string can be encoded.

    Args:
        text: The string.
        where: What it is, to begin a message with.

    Raises:
        ValueError: If it holds a lone surrogate; the message shows the text around it.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        at = error.start
        raise ValueError(
            f"{where} holds half of a character at position {at}, the lone surrogate {text[at]!a} in "
            f"{text[max(at - _SHOWN, 0) : at + _SHOWN]!a}: no tokenizer reads that. Clean the text with "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace'), or leave the row out."
        ) from error


def mended(text: str) -> str:
    """The string with pairs of surrogates joined, and the sign for an unknown character for each half."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
