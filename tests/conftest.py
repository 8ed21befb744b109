"""Shared fixtures: seeds printed, clocks handed in, real peers named when they are missing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests import _canaries
from tests._postgres import running_postgres
from tests._real_model import RealModel, lacking, running_model

NEEDS = {
    "needs_prometheus": ("prometheus", "prometheus-alertmanager"),
    "needs_chromium": ("chromium",),
}


def pytest_configure(config: pytest.Config) -> None:
    """Plant canaries in everything, and look for them after every test."""
    _canaries.pytest_configure(config)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what a missing program makes impossible, and say which program and which Debian package."""
    for item in items:
        if item.path.stem.startswith("test_lab_"):
            # One shop at a time: two would want more than this machine's cores, and judge each other's speed.
            item.add_marker(pytest.mark.xdist_group("lab"))
        if item.get_closest_marker("needs_model"):
            # One server for all of them, and none at all where its wheels are not installed.
            item.add_marker(pytest.mark.xdist_group("model"))
            if lacking():
                item.add_marker(pytest.mark.skip(reason=f"left out: needs {lacking()} (wheels on PyPI)"))
        for marker, programs in NEEDS.items():
            missing = [program for program in programs if shutil.which(program) is None]
            if item.get_closest_marker(marker) and missing:
                item.add_marker(
                    pytest.mark.skip(reason=f"left out: needs {', '.join(missing)} (Debian packages of that name)")
                )


class FakeClock:
    """A clock that moves only when told to."""

    def __init__(self) -> None:
        self.at = datetime(2026, 11, 20, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.at

    def forward(self, *, seconds: float) -> None:
        self.at += timedelta(seconds=seconds)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of a real PostgreSQL: QUELL_TEST_POSTGRES, or one of our own for the session."""
    with running_postgres() as url:
        yield url


@pytest.fixture(scope="session")
def real_model() -> Iterator[RealModel]:
    """Give a real model behind a real server, in a process that ends with the session."""
    with running_model() as model:
        yield model
