"""People outside are told over real HTTP: signed requests, signed answers, and nothing approved by anything else."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quell.config import ApprovalSettings, Secret, Settings
from quell.domain import ApprovalStatus, AuditKind, ConfigError, WorldError
from quell.governance import Approvals
from quell.tools import fetch_keys, post_webhook
from quell.tools._trust import trusted
from tests._postgres import fresh_database
from tests.doors._authority_house import House, Service, Told, a_house, certificate, frozen_with, settings_of, until
from tests.doors.test_server_authority_approvals import UNKNOWN, sign

pytestmark = pytest.mark.timeout(30)

SECRET = "s" * 32
YES, NO = b'{"approved":true}', b'{"approved":false,"reason":"not now"}'
Answer = tuple[int, dict[str, str], bytes] | None


def unsigned(url: str, **changed: object) -> ApprovalSettings:
    """Plain http, as the service of a test speaks it, takes no secret: the signature has its own stories."""
    return replace(ApprovalSettings(webhook_url=f"{url}/hook", timeout_s=5.0), **changed)  # type: ignore[arg-type]  # fields of it


def with_service(
    story: Callable[[House, Service], object], tmp_path: Path, *, url: str = "", **changed: object
) -> None:
    async def run() -> None:
        async with Service() as service:
            settings = settings_of(tmp_path, approvals=unsigned(service.url, **changed), url=url)
            await in_it(settings, service)

    async def in_it(settings: Settings, service: Service) -> None:
        async with a_house(settings) as house:
            await story(house, service)  # type: ignore[misc]  # a story is awaited

    asyncio.run(run())


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_a_service_is_asked_once_and_its_answer_decides(
    tmp_path: Path, dialect: str, request: pytest.FixtureRequest
) -> None:
    async def story(house: House, service: Service) -> None:
        service.answer = lambda _told: (200, {}, YES)
        approval = house.ask()
        await until(lambda: house.find(approval).status is ApprovalStatus.APPROVED)
        (vote,) = house.find(approval).votes
        assert (vote.voter, vote.roles, vote.digest) == ("webhook", ("approver",), approval.digest)
        await until(lambda: len(house.bodies(AuditKind.APPROVAL)) == 2)
        counted, told = house.bodies(AuditKind.APPROVAL)
        assert (counted["way"], counted["verdict"], told["told"]) == ("webhook", "approve", "webhook")
        await asyncio.sleep(1.5)
        (sent,) = service.told
        body = json.loads(sent.body)
        assert sent.path == "/hook"
        assert (sent.headers["content-type"], sent.headers["x-team"]) == ("application/json", "sre")
        assert (body["version"], body["decision_id"]) == (1, Approvals.decision_id_of(approval.id))
        assert body["items"] == [{"tool_name": "scale", "arguments": {"replicas": 6}, "tool_call_intent": "it is slow"}]

    headers = {"X-Team": Secret("sre")}
    if dialect == "sqlite":
        with_service(story, tmp_path, webhook_headers=headers)
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as url:
        with_service(story, tmp_path, webhook_headers=headers, url=url)


def test_a_rejection_is_one_with_the_reason_that_was_given(tmp_path: Path) -> None:
    async def story(house: House, service: Service) -> None:
        service.answer = lambda _told: (200, {}, NO)
        approval = house.ask()
        await until(lambda: house.find(approval).status is ApprovalStatus.REJECTED)
        assert "not now" in house.find(approval).told

    with_service(story, tmp_path)


def test_an_accepted_request_is_decided_later_or_by_somebody_else(tmp_path: Path) -> None:
    async def story(house: House, service: Service) -> None:
        service.answer = lambda _told: (202, {}, b"")
        approval = house.ask()
        await until(lambda: any("told" in body for body in house.bodies(AuditKind.APPROVAL)))
        assert house.find(approval).status is ApprovalStatus.REQUESTED
        body = {"decision": "approve", "digest": approval.digest}
        assert (await house.http.post(f"/api/v1/approvals/{approval.id}", json=body)).status_code == 200

    with_service(story, tmp_path)


REFUSED: dict[str, Answer] = {
    "an error": (500, {}, YES),
    "a redirect": (302, {"location": "http://127.0.0.1:9/"}, YES),
    "no JSON": (200, {}, b"ok"),
    "another shape": (200, {}, b'{"approved":"yes"}'),
    "a key too many": (200, {}, b'{"approved":true,"all":true}'),
    "nothing": (200, {}, b""),
    "a flood": (200, {}, b'{"approved":true}' + b" " * 100_000),
    "silence": None,
}


def test_whatever_else_is_answered_approves_nothing(tmp_path: Path) -> None:
    async def story(house: House, service: Service) -> None:
        answers = dict(enumerate(REFUSED.values()))
        asked = {number: house.ask(number) for number in answers}
        by_decision = {Approvals.decision_id_of(each.id): number for number, each in asked.items()}
        service.answer = lambda told: answers[by_decision[json.loads(told.body)["decision_id"]]]
        await until(lambda: len(service.told) >= len(answers))
        await asyncio.sleep(1.5)
        for number, approval in asked.items():
            found = house.find(approval)
            assert (found.status, found.votes) == (ApprovalStatus.REQUESTED, ()), list(REFUSED)[number]

    with_service(story, tmp_path, timeout_s=1.0)


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ssl.SSLContext]:
    """What a service on this machine serves with, trusted by us as operators have their own roots trusted."""
    public, context = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    trusted.cache_clear()
    yield context
    trusted.cache_clear()


def test_only_an_answer_signed_for_this_decision_counts(tmp_path: Path, tls: ssl.SSLContext) -> None:
    async def run() -> None:
        async with Service(tls=tls) as service:
            approvals = ApprovalSettings(
                webhook_url=f"{service.url}/hook", webhook_secret=Secret(SECRET), webhook_secondary=Secret("t" * 32)
            )
            async with a_house(settings_of(tmp_path, approvals=approvals)) as house:
                now_s = house.clock.at.timestamp()

                def signer(**changed: Any) -> Callable[[str], dict[str, str]]:
                    return lambda decision: sign(
                        YES, **{"decision": decision, "at_s": now_s, "secret": SECRET, **changed}
                    )

                table = [
                    ("approved", signer()),
                    ("approved", signer(secret="t" * 32)),
                    ("requested", lambda _decision: {}),
                    ("requested", signer(secret="x" * 32)),
                    ("requested", signer(at_s=now_s - 301)),
                    ("requested", signer(context="approval-request")),
                    ("requested", signer(decision=UNKNOWN)),
                ]
                asked = [house.ask(number) for number in range(len(table))]
                answers = {Approvals.decision_id_of(each.id): table[number][1] for number, each in enumerate(asked)}

                def answer(told: Told) -> Answer:
                    decision = json.loads(told.body)["decision_id"]
                    expected = sign(told.body, decision=decision, at_s=now_s, secret=SECRET, context="approval-request")
                    assert told.headers["x-aura-signature-256"] == expected["x-aura-signature-256"]
                    assert told.headers["x-aura-timestamp"] == expected["x-aura-timestamp"]
                    return 200, answers[decision](decision), YES

                service.answer = answer
                await until(lambda: sum("told" in body for body in house.bodies(AuditKind.APPROVAL)) == len(table))
                assert [house.find(each).status.value for each in asked] == [status for status, _ in table]
                refusals = house.bodies(AuditKind.REFUSAL)
                assert [body["code"] for body in refusals] == ["unauthenticated"] * 5
                await asyncio.sleep(1.2)
                assert len(service.told) == len(table), "nobody is asked again"

    asyncio.run(run())


def test_a_service_whose_certificate_nobody_trusts_is_told_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        async with Service(tls=certificate(tmp_path)[1]) as service:
            with pytest.raises(WorldError):
                await post_webhook(service.url, headers=[], body=b"{}", timeout_s=2)
            with pytest.raises(WorldError):
                await asyncio.to_thread(fetch_keys, service.url)
            assert service.told == []

    asyncio.run(run())


def test_an_address_that_was_judged_is_connected_to_and_held_to_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public, tls = certificate(tmp_path, "hook.example")
    monkeypatch.setenv("SSL_CERT_FILE", str(public))
    trusted.cache_clear()

    async def run() -> None:
        async with Service(tls=tls) as service:
            port = service.url.rpartition(":")[2]
            named, other = (f"https://{host}:{port}/in?x=1" for host in ("hook.example", "other.example"))
            reply = await post_webhook(named, headers=[], body=b"{}", timeout_s=5, to="127.0.0.1")
            assert reply.status == 200
            assert (service.told[0].path, service.told[0].headers["host"]) == ("/in?x=1", f"hook.example:{port}")
            with pytest.raises(WorldError):
                await post_webhook(other, headers=[], body=b"{}", timeout_s=5, to="127.0.0.1")
            assert len(service.told) == 1, "its certificate is for another name"

    try:
        asyncio.run(run())
    finally:
        trusted.cache_clear()


def test_a_secret_over_plain_http_does_not_start(tmp_path: Path) -> None:
    async def opens(approvals: ApprovalSettings) -> None:
        async with a_house(settings_of(tmp_path, approvals=approvals)):
            pytest.fail("it serves")

    plain = ApprovalSettings(webhook_url="http://approve.example/hook", webhook_secret=Secret(SECRET))
    short = ApprovalSettings(webhook_url="https://approve.example/hook", webhook_secret=Secret("short"))
    for settings, word in ((plain, "plain http"), (short, "shorter")):
        with pytest.raises(ConfigError) as refused:
            asyncio.run(opens(settings))
        assert word in " ".join(map(str, refused.value.problems))


def test_a_chat_is_shown_the_whole_question_or_a_link_with_the_digest(tmp_path: Path) -> None:
    async def run() -> None:
        async with Service() as service:
            chat = ApprovalSettings(slack_url=Secret(f"{service.url}/T1/B2/x"), link_url="https://quell.example/")
            async with a_house(settings_of(tmp_path, approvals=chat)) as house:
                whole = house.ask(1)
                large = house.ask(2, call=frozen_with(2, arguments=json.dumps({"text": "x" * 5000})))
                await until(lambda: len(service.told) == 2)
                texts = [json.loads(told.body)["text"] for told in service.told]
                (first,) = [text for text in texts if whole.id in text]
                (second,) = [text for text in texts if large.id in text]
                assert whole.digest in first
                assert "replicas" in first
                assert f"https://quell.example/api/v1/approvals/{large.id}" in second
                assert large.digest in second
                assert "xxx" not in second, "a question is never cut"
                assert house.find(whole).votes == ()

    asyncio.run(run())


def test_what_is_sent_holds_no_secret_of_ours(tmp_path: Path) -> None:
    canary = "canary-7f3a9c1e5b8d2046"

    async def story(house: House, service: Service) -> None:
        house.ask(call=frozen_with(1, arguments=json.dumps({"note": canary}, separators=(",", ":"))))
        await until(lambda: len(service.told) == 1)
        assert canary not in service.told[0].body.decode()
        assert json.loads(service.told[0].body)["items"][0]["arguments"]["note"]

    with_service(story, tmp_path, webhook_headers={"X-Key": Secret(canary)})


def test_a_claim_is_held_by_one_and_lost_by_who_dies(tmp_path: Path) -> None:
    async def run() -> None:
        async with a_house(settings_of(tmp_path)) as house:
            notices, approval = house.authority.guard.approvals.notices, house.ask()

            def claim() -> bool:
                with house.app.runs.database.writing(durability="written") as connection:
                    is_due = notices.is_due(connection, approval.id, channel="webhook", lease_s=60)
                    is_claimed = notices.claim(connection, approval.id, channel="webhook", lease_s=60)
                    assert is_due == is_claimed
                    return is_claimed

            claims = await asyncio.gather(*(asyncio.to_thread(claim) for _ in range(8)))
            assert sorted(claims) == [False] * 7 + [True]
            house.clock.forward(seconds=61)
            assert claim(), "who claimed it died"
            house.clock.forward(seconds=61)
            assert claim()
            house.clock.forward(seconds=61)
            assert not claim(), "three times are enough"
            other = house.ask(2)
            with house.app.runs.database.writing(durability="written") as connection:
                assert notices.claim(connection, other.id, channel="chat", lease_s=60)
                notices.settle(connection, other.id, channel="chat")
            house.clock.forward(seconds=61)
            with house.app.runs.database.writing(durability="written") as connection:
                assert not notices.claim(connection, other.id, channel="chat", lease_s=60), "it was told"

    asyncio.run(run())


def test_what_is_sent_out_is_bounded_and_tells_no_address(tmp_path: Path) -> None:
    async def run() -> None:
        async with Service() as service:
            for said, word in (
                ((500, {}, b""), "answered 500"),
                ((307, {"location": "http://127.0.0.1:9/"}, b""), "answered 307"),
                ((200, {}, b"x" * 70_000), "too long"),
                (None, "did not answer"),
            ):
                service.answer = lambda _told, said=said: said  # type: ignore[misc]  # a default of a lambda
                with pytest.raises(WorldError) as refused:
                    await post_webhook(f"{service.url}/secret-path", headers=[], body=b"{}", timeout_s=0.5)
                assert word in str(refused.value)
                assert "secret-path" not in f"{refused.value} {refused.value.hint}"
            for url in ("http://127.0.0.1:9/secret-path", "nonsense", "https://nowhere.invalid/secret-path"):
                with pytest.raises(WorldError) as refused:
                    await post_webhook(url, headers=[], body=b"{}", timeout_s=2)
                assert "secret-path" not in str(refused.value)

    asyncio.run(run())


@pytest.mark.parametrize(
    "url", ["http://login.example/keys", "ftp://127.0.0.1/keys", "file:///etc/passwd", "", "http://["]
)
def test_keys_are_fetched_over_https_or_from_this_machine(url: str) -> None:
    with pytest.raises(WorldError):
        fetch_keys(url)
