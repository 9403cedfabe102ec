"""Pushes to a local Hub, from processes that know no other."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from optimum_mwanda.evaluation.harness.comparison import HarnessComparison
from optimum_mwanda.sharing.card_update import BEGIN, END

from ..hub_server import TOKEN, Commit, HubServer, run_client

OWN_CARD = f"""---
license: mit
language: yo
tags:
- mine
---

# My model

Ask me about it.

{BEGIN}
an old section
{END}

## Contact

me@example.org
"""


@dataclasses.dataclass
class Session:
    """What one client process saw, and the server that it talked to."""

    hub: HubServer
    seen: dict[str, Any]

    def commits(self, repo: str) -> list[Commit]:
        return [commit for commit in self.hub.commits if commit.repo == repo]

    def text(self, repo: str, path: str, branch: str = "main") -> str:
        return self.hub.repos[repo][branch][path].decode("utf-8")


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    with HubServer() as hub:
        hub.add(
            "acme/base", {"README.md": b"---\nlicense: other\nlicense_name: acme\nlicense_link: LICENSE\n---\n# Base\n"}
        )
        hub.add("me/carded", {"README.md": OWN_CARD.encode()})
        hub.add("me/foreign", {"README.md": b"# Mine", "harness.json": b"mine"})
        hub.failing_commits["me/flaky"] = 1
        yield Session(
            hub, run_client("tests.sharing.hub_client", "with_token", tmp_path_factory.mktemp("home"), hub.url, TOKEN)
        )


def test_model_tokenizer_card_settings_and_evaluation_come_in_one_commit(session: Session) -> None:
    (commit,) = session.commits("me/first")
    assert {
        "README.md",
        "config.json",
        "evaluation.json",
        "generation_config.json",
        "harness.json",
        "model.safetensors",
        "mwanda_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= set(commit.added)
    assert commit.message == "Prune it"
    assert session.hub.private["me/first"]


@pytest.mark.parametrize("name", ["sparsity.png", "degradation.png"])
def test_pictures_are_pushed_with_the_card_that_shows_them(session: Session, name: str) -> None:
    pytest.importorskip("matplotlib")
    (commit,) = session.commits("me/first")
    assert name in commit.added
    assert session.hub.repos["me/first"]["main"][name].startswith(b"\x89PNG")
    assert f"]({name})" in session.text("me/first", "README.md")


def test_what_was_pushed_loads_back_by_repository_id(session: Session) -> None:
    assert session.seen["first"] == {"equal": True, "record": True, "verified": True, "words": [1, 2], "settings": True}


def test_evaluation_is_pushed_as_json(session: Session) -> None:
    evaluation = json.loads(session.text("me/first", "evaluation.json"))
    assert evaluation["seen"] == ["en", "fr", "sw"]
    assert evaluation["pruned"]["pruned"]["languages"][1]["language"] == "sw"


def test_benchmarks_are_pushed_as_json_and_stand_in_the_card(session: Session) -> None:
    found = HarnessComparison.from_dict(json.loads(session.text("me/first", "harness.json")))
    assert found.change("pruned", ("xcopa", "acc", "sw")) == -0.25
    results = ModelCard(session.text("me/first", "README.md")).data.eval_results
    assert [each.metric_value for each in results if each.dataset_name == "xcopa"] == [0.5]


def test_card_names_the_repository_the_base_model_and_its_licence(session: Session) -> None:
    text = session.text("me/first", "README.md")
    data = ModelCard(text).data
    assert 'from_pretrained("me/first")' in text
    assert (data.base_model, data.base_model_relation) == ("acme/base", "finetune")
    assert (data.license, data.license_name) == ("other", "acme")
    assert data.license_link == "https://huggingface.co/acme/base/blob/main/LICENSE"


def test_second_push_replaces_weights_that_would_be_loaded_in_place_of_the_new_ones(session: Session) -> None:
    assert session.seen["twice"]
    first, second = session.commits("me/twice")
    assert first.deleted == []
    assert "model.safetensors" in second.deleted
    assert "model.safetensors.index.json" in second.added


def test_second_push_leaves_no_evaluation_of_the_weights_that_were_there_before(session: Session) -> None:
    first, second = session.commits("me/twice")
    evaluations = {"evaluation.json", "harness.json"}
    assert evaluations <= set(first.added)
    assert evaluations <= set(second.deleted)
    card = session.text("me/twice", "README.md")
    assert "xcopa" not in card
    assert "degradation.png" not in card
    assert "degradation.png" not in session.hub.repos["me/twice"]["main"]


def test_push_that_fails_at_the_commit_leaves_nothing_and_can_be_repeated(session: Session) -> None:
    flaky = session.seen["flaky"]
    assert "500" in flaky["failure"]
    assert flaky["left"] == [".gitattributes"]
    assert flaky["equal"]
    assert len(session.commits("me/flaky")) == 1


def test_card_in_the_repository_keeps_all_but_its_own_section(session: Session) -> None:
    text = session.text("me/carded", "README.md")
    card = ModelCard(text)
    assert "an old section" not in text
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.index("Ask me about it.") < text.index(BEGIN) < text.index("### Citation") < text.index("## Contact")
    assert text.endswith(OWN_CARD[OWN_CARD.index(END) :])
    assert card.data.license == "mit"
    assert card.data.language == ["yo", "en", "fr", "sw"]
    assert card.data.tags[:2] == ["mine", "optimum-mwanda"]


def test_files_of_others_are_kept(session: Session) -> None:
    assert session.text("me/foreign", "harness.json") == "mine"


def test_commit_names_the_state_whose_card_was_read(session: Session) -> None:
    """So that the server refuses it if somebody has committed in between."""
    assert all(commit.parent is not None for commit in session.commits("me/carded"))


def test_revision_is_made_and_gets_the_commit(session: Session) -> None:
    (commit,) = session.commits("me/branched")
    assert (commit.revision, commit.create_pr) == ("pruned", False)
    assert session.seen["branched"]
    assert list(session.hub.repos["me/branched"]["main"]) == [".gitattributes"]


def test_pull_request_leaves_the_main_branch_alone(session: Session) -> None:
    (commit,) = session.commits("me/proposed")
    assert (commit.revision, commit.create_pr) == ("main", True)
    assert session.seen["pull_request"].startswith(f"{session.hub.url}/me/proposed/discussions/")
    assert list(session.hub.repos["me/proposed"]["main"]) == [".gitattributes"]


def test_base_model_without_a_card_gives_a_card_without_a_licence(session: Session) -> None:
    data = ModelCard(session.text("me/orphan", "README.md")).data
    assert (data.base_model, data.license) == ("acme/missing", None)


def test_compressed_push_takes_the_place_of_the_dense_weights(session: Session) -> None:
    assert session.seen["small"]
    files = session.hub.repos["me/small"]["main"]
    assert "model.mwanda.safetensors" in files
    assert "model.safetensors" not in files
    assert "The weights are stored compressed" in session.text("me/small", "README.md")


def test_plain_push_of_transformers_carries_the_record(session: Session) -> None:
    assert session.seen["plain"]
    assert "mwanda_config" in json.loads(session.text("me/plain", "config.json"))


def test_model_without_a_record_is_refused_before_the_hub_is_asked(session: Session) -> None:
    assert session.seen["dense"].startswith("ValueError: The model has no sparsity record")
    assert "me/dense" not in session.hub.repos


def test_without_token_and_network_there_is_a_card_and_an_error_of_one_line(tmp_path: Path) -> None:
    seen = run_client("tests.sharing.hub_client", "without_token", tmp_path, "http://127.0.0.1:9", None)
    assert seen["license"] is None
    assert seen["push"].startswith("LocalTokenNotFoundError: A push to the Hub needs a token")
    assert "\n" not in seen["push"]
