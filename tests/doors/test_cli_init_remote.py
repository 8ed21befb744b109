"""`quell init --server`: a directory becomes a client, and what it asks from then on goes there."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest

from tests._quell import NOWHERE, UNPLANTED, error_of, quell
from tests.doors._chat_bench import agent_file, played, says, terminal
from tests.doors._cli_bench import Desk
from tests.doors._model_bench import plain
from tests.doors.test_cli_server import server

pytestmark = pytest.mark.timeout(120)  # whole processes, a server among them

LISTED = plain(200, {"object": "list", "data": [{"id": "day", "object": "model"}, {"id": "night", "object": "model"}]})
KEY = "qk_typed_0123456789abcdef"


def test_after_it_questions_go_to_the_server_with_the_key_that_was_given(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    desk = Desk(at=there)
    desk.configure()
    key = here / "key"
    key.write_text(desk.key("ann", "operator")["QUELL_API_KEY"] + "\n")
    with played(says("It is well.")) as model:
        agent_file(there, model.url)
        with server(there) as url:
            stranger = quell("init", "--server", url, "--json", cwd=here, env=UNPLANTED)
            assert (stranger.returncode, stranger.stdout) == (4, ""), stranger
            told = quell("init", "--server", f"{url}/v1/", "--key-from", str(key), cwd=here, env=UNPLANTED)
            assert told.returncode == 0, told
            assert key.read_text().strip() not in told.stdout + told.stderr
            dotenv = here / ".env"
            assert dotenv.read_text() == f"AURA_API_URL={url}\nQUELL_API_KEY={key.read_text().strip()}\n"
            assert stat.S_IMODE(dotenv.stat().st_mode) == 0o600
            assert {each.name for each in here.iterdir() if each.is_file()} == {".env", "key"}
            asked = quell("ask", "is web well?", cwd=here, env=UNPLANTED)
            assert (asked.returncode, asked.stdout) == (0, "It is well.\n"), asked
            again = quell("init", "--server", url, "--json", cwd=here, env=UNPLANTED)
            assert (again.returncode, json.loads(again.stdout)["is_written"]) == (0, False), again


def test_the_agent_is_one_that_the_server_lists_and_what_is_there_stays(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("OTHER=1\nAURA_MODEL=old")
    with played(LISTED, LISTED, LISTED, LISTED) as model:
        flags = ("init", "--server", model.url, "--json", "--agent")
        near = quell(*flags, "nigt", cwd=tmp_path, env=UNPLANTED)
        assert (near.returncode, error_of(near)["hint"]) == (2, "did you mean night?")
        held = quell(*flags, "night", cwd=tmp_path, env=UNPLANTED)
        assert (held.returncode, "--force" in str(error_of(held)["hint"])) == (2, True)
        dry = quell(*flags, "night", "--dry-run", cwd=tmp_path, env=UNPLANTED)
        assert json.loads(dry.stdout)["is_written"] is False
        assert (tmp_path / ".env").read_text() == "OTHER=1\nAURA_MODEL=old"
        done = quell(*flags, "night", "--force", cwd=tmp_path, env=UNPLANTED)
        told = json.loads(done.stdout)
        where = model.url.removesuffix("/v1")
        assert (told["server"], told["agent"], told["is_written"]) == (where, "night", True)
    assert (tmp_path / ".env").read_text() == f"OTHER=1\nAURA_MODEL=night\nAURA_API_URL={where}\n"


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (("--server", NOWHERE), 3, "cannot be reached"),
        (("--server", "small"), 2, "is no address"),
        (("--server", NOWHERE, "--model", "gpt-5", "--form", "team"), 2, "--model, --form"),
        (("--agent", "night"), 2, "--agent is for --server"),
    ],
)
def test_what_cannot_be_writes_nothing(tmp_path: Path, flags: tuple[str, ...], code: int, words: str) -> None:
    told = quell("init", "--no-input", *flags, cwd=tmp_path, env=UNPLANTED)
    assert (told.returncode, told.stdout, words in told.stderr) == (code, "", True), told
    assert not (tmp_path / ".env").exists()


def test_offline_nobody_is_asked(tmp_path: Path) -> None:
    told = quell("init", "--server", NOWHERE, "--agent", "night", "--offline", cwd=tmp_path, env=UNPLANTED)
    assert told.returncode == 0, told
    assert (tmp_path / ".env").read_text() == f"AURA_API_URL={NOWHERE}\nAURA_MODEL=night\n"


def test_a_person_is_asked_for_the_key_and_the_agent(tmp_path: Path) -> None:
    with played(LISTED) as model, terminal("init", "--server", model.url, cwd=tmp_path, env=UNPLANTED) as person:
        person.wait("Key of the server")
        person.type(f"{KEY}\n")
        assert "night" in person.wait("Number or name")
        person.type("2\n")
        assert KEY not in person.wait("Write this?")
        person.type("y\n")
        person.end()
    assert person.code == 0
    assert model.heads[0]["authorization"] == f"Bearer {KEY}"
    expected = f"AURA_API_URL={model.url.removesuffix('/v1')}\nAURA_MODEL=night\nQUELL_API_KEY={KEY}\n"
    assert (tmp_path / ".env").read_text() == expected
