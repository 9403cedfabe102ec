"""What `Trainer.push_to_hub` leaves on a local Hub, pushed by a process that knows no other."""

from collections.abc import Iterator

import pytest

from ..hub_server import TOKEN, HubServer, metadata, metadata_errors, run_client


@pytest.fixture(scope="module")
def pushed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HubServer, dict[str, object]]]:
    with HubServer() as hub:
        hub.add("acme/base", {"README.md": b"---\nlicense: mit\n---\n# Base\n"})
        yield hub, run_client("tests.training.hub_client", "push", tmp_path_factory.mktemp("home"), hub.url, TOKEN)


def test_the_pushed_model_is_what_its_record_says(pushed: tuple[HubServer, dict[str, object]]) -> None:
    _, seen = pushed
    assert seen["verified"]
    assert seen["training"] == [["masks kept", 2]]


def test_the_card_says_that_the_model_was_trained_with_masks_kept(pushed: tuple[HubServer, dict[str, object]]) -> None:
    hub, _ = pushed
    card = hub.repos["me/trained"]["main"]["README.md"].decode()
    assert "fine-tuned afterwards for 2 steps (`masks kept`)" in card
    assert "without retraining" not in card
    assert metadata_errors(card) == []


def test_the_card_keeps_what_the_trainer_writes_and_shows_the_languages(
    pushed: tuple[HubServer, dict[str, object]],
) -> None:
    hub, _ = pushed
    card = hub.repos["me/trained"]["main"]["README.md"].decode()
    assert "## Training procedure" in card
    assert "generated_from_trainer" in metadata(card)["tags"]
    assert {"pruned", "mwanda"} <= set(metadata(card)["tags"])
    assert "| `sw`       |        yes |  7.39 |  12.18 |" in card
    assert metadata(card)["model-index"]
