"""Where settings are kept: a file of JSON in a folder or in a repository of the Hub."""

import abc
import dataclasses
import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

CONFIG_NAME = "mwanda_config.json"


def write_settings(folder: str | os.PathLike[str], text: str) -> None:
    """Writes `mwanda_config.json` into a folder, which is created if it does not exist."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    (target / CONFIG_NAME).write_text(text, encoding="utf-8")


def read_settings(name_or_path: str | os.PathLike[str], **hub_kwargs: Any) -> dict[str, Any]:
    """Reads `mwanda_config.json` from a folder, from a JSON file, or from a Hub repository.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it does not hold one JSON object.
    """
    path = Path(name_or_path)
    if path.is_dir():
        path = path / CONFIG_NAME
        if not path.is_file():
            raise FileNotFoundError(f"{name_or_path} has no {CONFIG_NAME}: save one with save_pretrained().")
    elif not path.is_file():
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HFValidationError

        try:
            path = Path(hf_hub_download(str(name_or_path), CONFIG_NAME, **hub_kwargs))
        except HFValidationError:
            raise FileNotFoundError(
                f"{str(name_or_path)!r} is neither a folder with a {CONFIG_NAME}, nor a file, nor a repository id."
            ) from None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold one JSON object with the settings, not a {type(values).__name__}.")
    return values


class SavedSettings(abc.ABC):
    """Base of a dataclass of settings that are written to a file and read from one."""

    @abc.abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The settings as plain JSON values."""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Builds a config from plain values.

        Raises:
            ValueError: If a key is not a setting (the message names the nearest one) or a value is not allowed.
        """
        legal = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for key in values:
            if key not in legal:
                near = difflib.get_close_matches(str(key), legal, n=1, cutoff=0.5)
                hint = f" Did you mean {near[0]!r}?" if near else f" Settings are: {', '.join(legal)}."
                raise ValueError(f"{key!r} is not a setting of {cls.__name__}.{hint}")
        return cls(**values)

    def to_json_string(self) -> str:
        """The settings as indented JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n"

    def save_pretrained(self, save_directory: str | os.PathLike[str]) -> None:
        """Writes `mwanda_config.json` into a folder, which is created if it does not exist."""
        write_settings(save_directory, self.to_json_string())

    @classmethod
    def from_pretrained(cls, name_or_path: str | os.PathLike[str], **hub_kwargs: Any) -> Self:
        """Reads `mwanda_config.json` from a folder, from a JSON file, or from a Hub repository.

        Args:
            name_or_path: Folder, file, or repository id.
            **hub_kwargs: Passed to `huggingface_hub.hf_hub_download`: `revision`, `token`, `cache_dir`, ...

        Raises:
            FileNotFoundError: If there is no `mwanda_config.json`.
            ValueError: If the file is not JSON or holds unknown or illegal settings.
        """
        return cls.from_dict(read_settings(name_or_path, **hub_kwargs))
