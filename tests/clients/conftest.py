"""One house for all clients of a session: a server takes seconds to start, and clients do not meet in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients._house import House, agents_of, house
from tests.clients._script import Script, scripted

LANES = {
    "node": "QUELL_NODE_TOOLS",
    "open-webui": "QUELL_OPEN_WEBUI_PYTHON",
    "phoenix": "QUELL_PHOENIX_PYTHON",
}
_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep those that share the house in one worker, and give them time to start it."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("clients"))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(90))
            lane = item.get_closest_marker("clients")
            if lane and lane.args and not os.environ.get(LANES[lane.args[0]]):
                item.add_marker(pytest.mark.skip(reason=f"left out: `make test-clients` installs {lane.args[0]}"))


@pytest.fixture(scope="session")
def script() -> Iterator[Script]:
    """Give the provider of the house's models; a test says what it answers."""
    with scripted() as provider:
        yield provider


@pytest.fixture(scope="session")
def open_house(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Give a server on loopback that asks nobody who they are."""
    with house(tmp_path_factory.mktemp("house") / "open", agents_of(script)) as running:
        yield running


@pytest.fixture(scope="session")
def locked_house(script: Script, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Give a server that wants an API key."""
    locked = "\n[identity]\napi_keys = true\n"
    with house(tmp_path_factory.mktemp("house") / "locked", agents_of(script), settings=locked) as running:
        yield running
