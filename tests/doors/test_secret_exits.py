"""Secrets that arrive late or stand inside of others, and the exits through which any of them could leave."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from quell import telemetry
from quell.app import open_app
from quell.app._sources import CleanReader
from quell.audit import Redactor
from quell.audit._redact import LATE_MAX
from quell.cli._session import Session
from quell.config import McpServerSettings, McpSettings, Secret, Settings
from quell.domain import (
    Alert,
    Answer,
    AttributeDiff,
    Exemplar,
    Gap,
    OutcomeKind,
    Question,
    QuestionKind,
    Severity,
    Symptom,
    ToolOutcome,
    Window,
)
from quell.incidents import Request
from quell.runs import system_clock
from tests._canaries import ENVIRONMENT, IN_ENVIRONMENT, IN_SETTINGS
from tests._quell import quell
from tests.doors._authority_house import KEYS, House, in_a_house, settings_of
from tests.doors._hand_bench import hand_room

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)


def pair(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("held", "told"),
    [
        ("Bearer tok-abcdef-1", "token tok-abcdef-1 was refused"),
        ("bearer  tok-abcdef-1", f"token {pair('tok-abcdef-1')} was refused"),
        (f"Basic {pair('ann:s3cr3t-words')}", "user ann with s3cr3t-words"),
        (f"Basic {pair('ann:s3cr3t-words')}", f"seen: {pair('ann:s3cr3t-words')}"),
        ("postgresql://app:p%40ss%2Fword@db/x", "FATAL: p@ss/word"),
        ("postgresql://app:p@ss/word-9@db/x", "FATAL: p@ss/word-9"),
        ("https://forge4token5inside6url@forge.test/x", "remote said forge4token5inside6url"),
        ("amqp://a:first-one@h1,amqp://b:second-one@h2", "second-one and nothing else"),
        ("host=db user=app password='two words' sslmode=require", "two words"),
        ("https://hooks.test/x?wait=1&api_key=s1s2s3s4s5s6#top", "no such key: s1s2s3s4s5s6"),
        ("Server=db;Uid=sa;Pwd=Strong-1;", "login of sa with Strong-1"),
    ],
)
def test_what_is_secret_inside_of_a_secret_is_held_by_itself(held: str, told: str) -> None:
    redactor = Redactor({"it": Secret(held)}, rules="off")
    assert "[redacted:it]" in redactor.text(told)
    assert (
        redactor.text("Bearer of news, app, ann, sa, a:b, forge.test")
        == "Bearer of news, app, ann, sa, a:b, forge.test"
    )


def test_an_authorization_in_the_environment_is_held() -> None:
    redactor = Redactor(environment={"PROXY_AUTHORIZATION": "Bearer tok-abcdef-1", "GIT_AUTHOR": "ann-of-the-team"})
    assert redactor.text("tok-abcdef-1 ann-of-the-team") == "[redacted:env.PROXY_AUTHORIZATION] ann-of-the-team"


def test_headers_in_the_environment_and_addresses_with_credentials_are_held() -> None:
    server = McpServerSettings(transport="http_streamable", url="http://me:tok-secret-77@h/mcp?api_key=abcd0123")
    settings = Settings(mcp=McpSettings(servers={"s": server}))
    headers = "authorization=Bearer%20tok-abcdef-1,x-scope=everything-1"
    redactor = Redactor.of(settings, environment={"OTEL_EXPORTER_OTLP_HEADERS": headers})
    assert redactor.text("tok-secret-77 abcd0123") == "[redacted:mcp.servers.s.url] [redacted:mcp.servers.s.url]"
    assert redactor.text("tok-abcdef-1 everything-1") == "[redacted:env.OTEL_EXPORTER_OTLP_HEADERS] everything-1"


def test_the_key_of_an_address_is_not_shown(tmp_path: Path) -> None:
    table = (
        '[mcp.servers.a]\ntransport = "http_streamable"\nurl = "http://me:pw-secret-77@h/mcp?wait=1&api_key=abcd0123"\n'
    )
    (tmp_path / "quell.toml").write_text(table)
    for flags in ((), ("--json",)):
        told = quell("config", "show", *flags, cwd=tmp_path).stdout
        assert "http://me:(hidden)@h/mcp?wait=1&api_key=(hidden)" in told


def test_the_latest_credentials_that_were_shown_are_held_and_the_settings_for_ever() -> None:
    redactor = Redactor({"mine": Secret("hunter2-hunter2")}, rules="off")
    shown = [f"{number:04}-shown-credential" for number in range(LATE_MAX + 1)]
    for secret in shown:
        redactor.hold_shown([("Authorization", f"Bearer {secret}"), ("Accept", "application/json-or-so")])
    wide = " ".join(["hunter2-hunter2", "application/json-or-so", shown[0], shown[-1]]) + " " * 20_000
    clean = redactor.text(wide).strip()
    assert clean == f"[redacted:mine] application/json-or-so {shown[0]} [redacted:header.authorization]"
    redactor.hold_shown([("Authorization", f"Bearer {shown[0]}")])
    assert shown[0] not in redactor.text(wide), "who comes again is held again"


def test_what_makes_a_token_one_is_held_and_not_whom_it_names() -> None:
    redactor = Redactor(rules="off")
    signature, secret = "sIgNaTuRe0123456789abcdef", "0123456789abcdef" * 4
    redactor.hold_shown(
        [
            ("authorization", f"Bearer eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhbm4ifQ.{signature}"),
            ("X-Api-Key", f"qk_01KAFE_{secret}"),
            ("Cookie", "theme=dark; session=5e55104c0ffee5e55104c0ffee"),
        ]
    )
    for hidden in (signature, secret, "5e55104c0ffee5e55104c0ffee", f"qk_01KAFE_{secret}"):
        assert hidden not in redactor.text(f"seen: {hidden}")
        assert hidden.encode().hex() not in redactor.text(hidden.encode().hex()) or hidden.startswith("qk_")
    assert redactor.text("qk_01KAFE eyJzdWIiOiJhbm4ifQ dark") == "qk_01KAFE eyJzdWIiOiJhbm4ifQ dark"


def test_a_key_that_proved_somebody_is_in_no_log_and_no_record_from_then_on(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        shown = await house.key("bo", "approver")
        strange = {"Authorization": "Bearer qk_00000000000000000000000000_" + "ab12" * 16}
        for headers, status in ((shown, 200), (strange, 401)):
            assert (await house.http.get("/api/v1/approvals", headers=headers)).status_code == status
        key = shown["Authorization"].removeprefix("Bearer ")
        logging.getLogger("a.library").warning("sent %s for %s", key.encode().hex(), strange["Authorization"][-64:])
        told = (tmp_path / "logs" / "quell.log").read_text()
        secret = key.rpartition("_")[2]
        assert secret.encode().hex() not in told
        assert "[redacted:header.authorization]" in told
        assert strange["Authorization"][-64:] in told, "a stranger has no word taken out of what others are told"
        assert secret not in house.authority.redactor.text(f"of {key}"), "one for the process, not one for each organ"

    in_a_house(story, settings_of(tmp_path, identity=KEYS))


def test_an_error_over_http_quotes_no_secret(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        for path in ("/api/v1/approvals/", "/api/v1/incidents/"):
            answer = await house.http.get(f"{path}{IN_SETTINGS.encode().hex()}")
            assert answer.status_code == 404
            assert "[redacted:store.password]" in answer.json()["error"]["message"]

    in_a_house(story, settings_of(tmp_path))


def test_headers_that_may_be_passed_on_do_not_come_back(tmp_path: Path) -> None:
    async def play() -> None:
        async with hand_room(tmp_path) as room:
            token = "user-token-0123456789"
            said = f"you sent {token} and {token.encode().hex()} as application/json"
            room.world.says.append(ToolOutcome(call="c", tool="logs_search", kind=OutcomeKind.OK, content=said))
            caller = room.caller(headers={"Authorization": f"Bearer {token}", "Accept": "application/json"})
            ended = await room.call("logs_search", caller=caller, service="web", query="x")
            assert isinstance(ended, ToolOutcome)
            mark = "[redacted:header.authorization]"
            assert ended.content == f"you sent {mark} and {mark} as application/json"

    asyncio.run(play())


@pytest.mark.parametrize("flags", [(), ("--json",), ("--debug",)])
def test_an_error_of_the_command_line_quotes_no_secret(tmp_path: Path, flags: tuple[str, ...]) -> None:
    (tmp_path / ".quell").mkdir()
    wrong = f"x{IN_ENVIRONMENT.encode().hex()}"
    told = quell(*flags, "config", "explain", wrong, cwd=tmp_path)
    assert told.returncode != 0
    assert "[redacted:env.CANARY_PAGER_TOKEN]" in told.stderr
    assert IN_ENVIRONMENT.encode().hex() not in told.stderr + told.stdout


def test_a_mistake_in_the_settings_quotes_no_secret_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "quell.toml").write_text(f"[server]\nport = {json.dumps(IN_ENVIRONMENT)}\n{pair(IN_ENVIRONMENT)} = 1\n")
    for flags in ((), ("--debug",), ("--json",)):
        told = quell(*flags, "config", "check", cwd=tmp_path)
        assert told.returncode != 0
        assert pair(IN_ENVIRONMENT)[:20] not in told.stderr + told.stdout


def test_what_libraries_warn_of_in_a_command_of_the_office_is_clean(
    tmp_path: Path,
) -> None:
    session = Session(env={"QUELL_STATE_DIR": str(tmp_path), **ENVIRONMENT})

    def work(_: object) -> int:
        logging.getLogger("a.library").error("could not log in with %s", IN_ENVIRONMENT)
        return 0

    assert session.with_office(work) == 0
    assert "could not log in with [redacted:env.CANARY_PAGER_TOKEN]" in (tmp_path / "logs" / "quell.log").read_text()


def test_a_log_line_that_cannot_be_formatted_is_told_without_its_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = telemetry.open_telemetry(
        Settings(state_dir=tmp_path), role="serve", service_version="1", instance="i", clock=system_clock, env={}
    )
    library = logging.getLogger("a.library.of.its.own")
    # pytest's own handlers would fail the test before ours is asked.
    library.propagate = False
    library.addHandler(logging.getLogger().handlers[-1])
    try:
        library.warning("logged in %d times", IN_SETTINGS)
    finally:
        opened.close_now()
        library.handlers.clear()
    told = capsys.readouterr().err
    assert "logged in %d times" in told
    assert IN_SETTINGS not in told


class Telling:
    """A source whose services log whatever they like."""

    name = "store"

    def __init__(self, said: str) -> None:
        self.said = said

    async def ask(self, question: Question, *, timeout_s: float) -> Answer | Gap:
        assert timeout_s > 0
        if question.kind is QuestionKind.CHANGES:
            return Gap(question=question.kind, source=self.name, query="q", reason="failed", detail=self.said)
        row = Exemplar(service="web", at=AT, severity="error", trace_id="ab", text=f"in: {self.said}")
        pairs = {"bad": 1, "bad_total": 1, "good": 0, "good_total": 1, "bad_share_before": 0.5}
        diff = AttributeDiff(service="web", key="dsn", value=self.said, **pairs)  # type: ignore[arg-type] # numbers
        return Answer(question=question, source=self.name, query="q", rows=(row, diff), partial=self.said)

    async def check(self) -> list[str]:
        return [self.said]


def test_what_services_log_is_read_without_our_secrets(tmp_path: Path) -> None:
    window = Window(start=AT, end=AT + timedelta(minutes=5))
    asked = Question(kind=QuestionKind.EXEMPLARS, window=window, baseline=window)
    redactor = Redactor(environment=ENVIRONMENT)
    mark = "[redacted:env.CANARY_PAGER_TOKEN]"

    async def play() -> None:
        told = CleanReader(Telling(pair(IN_ENVIRONMENT)), redactor=redactor)
        answer = await told.ask(asked, timeout_s=1)
        assert isinstance(answer, Answer)
        exemplar, diff = answer.rows
        assert isinstance(exemplar, Exemplar)
        assert isinstance(diff, AttributeDiff)
        for said in (exemplar.text, diff.value, answer.partial, *await told.check()):
            assert mark in said
        assert (exemplar.at, exemplar.service, answer.question) == (AT, "web", asked)
        gap = await told.ask(replace(asked, kind=QuestionKind.CHANGES), timeout_s=1)
        assert isinstance(gap, Gap)
        assert mark in gap.detail
        plain = Telling("nothing of ours")
        assert await CleanReader(plain, redactor=redactor).ask(asked, timeout_s=1) == await plain.ask(
            asked, timeout_s=1
        )
        settings = Settings(state_dir=tmp_path)
        async with open_app(settings, role="command", clock=system_clock, entropy=os.urandom, env=ENVIRONMENT) as app:
            assert all(isinstance(reader, CleanReader) for reader in app.readers)

    asyncio.run(play())


def test_what_alerts_and_people_say_is_kept_without_our_secrets(tmp_path: Path) -> None:
    hexed = IN_ENVIRONMENT.encode().hex()
    alert = Alert(
        id="alr_1",
        fingerprint="f1",
        source="alertmanager",
        name="web is slow",
        service="web",
        symptom=Symptom.LATENCY,
        severity=Severity.CRITICAL,
        status="firing",
        summary=f"no login with {hexed}",
        starts_at=AT,
        ends_at=None,
        received_at=AT,
        labels=(("service", "web"), ("dsn", hexed)),
    )

    async def play() -> None:
        settings = Settings(state_dir=tmp_path)
        async with open_app(settings, role="command", clock=system_clock, entropy=os.urandom, env=ENVIRONMENT) as app:
            (incident,) = await app.desk.handle([alert])
            (kept,) = await app.desk.alerts()
            assert kept.summary == "no login with [redacted:env.CANARY_PAGER_TOKEN]"
            assert dict(kept.labels) == {"service": "web", "dsn": "[redacted:env.CANARY_PAGER_TOKEN]"}
            assert hexed not in repr(incident)
            await app.desk.investigate(Request(text=f"why does {hexed} fail?", services=("web",)))
            assert hexed not in repr(await app.desk.incidents())

    asyncio.run(play())
