"""`optimum-cli mwanda decompress`."""

from pathlib import Path

from .compress import CompressCommand


class DecompressCommand(CompressCommand):
    """Turn a compressed checkpoint into an ordinary one that every tool can read."""

    INPUT = "a compressed checkpoint"
    EXAMPLE = "decompress COMPRESSED OUT"

    def convert(self, source: str, folder: Path) -> None:
        """Fills the new folder."""
        from ..storage.compressed import decompress

        decompress(source, folder)
