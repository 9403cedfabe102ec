"""Pushing a pruned model to the Hub: weights, tokenizer, card, pictures, settings and evaluation in one commit."""

import dataclasses
import re
import tempfile
from pathlib import Path

from huggingface_hub import (
    CommitInfo,
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_token,
)
from huggingface_hub.errors import LocalTokenNotFoundError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..evaluation.harness.comparison import HarnessComparison
from ..evaluation.report import PerplexityComparison
from .card_content import PrunedModelCard
from .card_update import BEGIN
from .folder import save_folder
from .model_card import describe, write_card
from .names import CARD_NAME, DEGRADATION_PLOT, EVALUATION_NAME, HARNESS_NAME, SPARSITY_PLOT

_ABOUT_WEIGHTS = (EVALUATION_NAME, HARNESS_NAME, SPARSITY_PLOT, DEGRADATION_PLOT)

_WEIGHTS = re.compile(
    r"(pytorch_)?model(\.mwanda)?(-\d{5}-of-\d{5})?(\.mwanda)?\.(safetensors|bin)(\.index)?(\.mwanda)?(\.json)?"
)


def push_to_hub(
    model: PreTrainedModel,
    repo_id: str,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    report: PerplexityComparison | None = None,
    harness: HarnessComparison | None = None,
    base_model: str | None = None,
    compressed: bool = False,
    max_shard_size: int | str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> CommitInfo:
    """Pushes a pruned model with its card in one commit: the repository gets all of it or nothing.

    Everything is saved into a temporary folder first. In a card that is already in the repository, only our section is
    replaced. Weight files of an earlier push that this one does not replace are deleted, because they could be loaded
    instead. If the card is ours, old evaluations and pictures are deleted too, because they are about other weights.

    Args:
        model: The pruned model.
        repo_id: Repository; created if it does not exist.
        tokenizer: Tokenizer to push with it.
        report: The dense model and this one, evaluated on the same text; goes into the card and `evaluation.json`.
        harness: The same two models in lm-evaluation-harness; goes into the card and `harness.json`.
        base_model: Repository of the dense model, for the card. None: what the record says.
        compressed: Whether to store the zeros compressed; loading then needs optimum-mwanda.
        max_shard_size: Most bytes per weight file. None: as for `save_checked`.
        private: Whether a new repository is private. None: the namespace's default.
        token: Token with write access. None or True: the one of `hf auth login` or `HF_TOKEN`.
        revision: Branch to commit to; created if it does not exist.
        create_pr: Whether to open a pull request with the commit.
        commit_message: First line of the commit.
        commit_description: Rest of the commit message.

    Returns:
        What the Hub says about the commit.

    Raises:
        ValueError: If the model has no sparsity record or a malformed one, or the repository's card is damaged.
        LocalTokenNotFoundError: If there is no token.
        HfHubHTTPError: If the Hub refuses. Nothing is committed then: push again.
    """
    content = describe(model, report, base_model, harness)  # a bad record must fail before anything is uploaded
    _checked_token(token)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "model")
        save_folder(
            model,
            folder,
            tokenizer,
            report=report,
            harness=harness,
            compressed=compressed,
            max_shard_size=max_shard_size,
        )
        return push_folder(
            folder,
            repo_id,
            dataclasses.replace(content, compressed=compressed),
            private=private,
            token=token,
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            commit_description=commit_description,
        )


def push_folder(
    source: Path,
    repo_id: str,
    content: PrunedModelCard,
    *,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> CommitInfo:
    """Pushes a folder that `save_folder` has written, as `push_to_hub` does; the folder is not changed.

    Args:
        source: The folder.
        repo_id: As for `push_to_hub`, and so are the others.
        content: What the card says; the card in the folder is not pushed.
        private: Whether a new repository is private.
        token: Token with write access.
        revision: Branch to commit to.
        create_pr: Whether to open a pull request.
        commit_message: First line of the commit.
        commit_description: Rest of the commit message.

    Returns:
        What the Hub says about the commit.
    """
    api = HfApi(token=_checked_token(token))
    with tempfile.TemporaryDirectory() as name:
        folder = _linked(source, Path(name, "model"))
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        info = api.model_info(repo_id, revision=revision)
        files = [sibling.rfilename for sibling in info.siblings or []]
        has_our_card = False
        if CARD_NAME in files:
            card = api.hf_hub_download(repo_id, CARD_NAME, revision=info.sha)
            (folder / CARD_NAME).write_bytes(Path(card).read_bytes())
            has_our_card = BEGIN in (folder / CARD_NAME).read_text(encoding="utf-8-sig")
        write_card(dataclasses.replace(content, repo_id=repo_id), folder)
        # upload_folder would split a large folder into several commits.
        return api.create_commit(
            repo_id,
            operations=_operations(folder, files, has_our_card),
            commit_message=commit_message or "Upload pruned model",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
            parent_commit=info.sha,  # refused if somebody has committed since the card was read
        )


def _linked(source: Path, folder: Path) -> Path:
    """A folder with links to the files of another one, but for the card and its pictures."""
    for path in source.rglob("*"):
        link = folder / path.relative_to(source)
        if path.is_file() and link.name not in (CARD_NAME, SPARSITY_PLOT, DEGRADATION_PLOT):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
    return folder


def _checked_token(token: bool | str | None) -> str:
    found = token if isinstance(token, str) else None if token is False else get_token()
    if not found:
        raise LocalTokenNotFoundError(
            "A push to the Hub needs a token with write access: run `hf auth login`, set HF_TOKEN, or pass token=."
        )
    return found


def _operations(folder: Path, remote: list[str], is_ours: bool) -> list[CommitOperationAdd | CommitOperationDelete]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    local = {path.relative_to(folder).as_posix(): path for path in paths}
    replaced = [name for name in remote if _WEIGHTS.fullmatch(name) or (is_ours and name in _ABOUT_WEIGHTS)]
    stale = [name for name in replaced if name not in local]
    return [
        *(CommitOperationAdd(name, path) for name, path in local.items()),
        *(CommitOperationDelete(name) for name in stale),
    ]
