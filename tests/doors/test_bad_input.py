"""Bad input from every side: each is refused in clear words, stands in the audit log, and takes nothing along."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest

from quell.audit import Audit
from quell.cli import ExitCode
from quell.config import ApprovalSettings, IdentitySettings, OidcSettings, Secret
from quell.domain import (
    ApprovalStatus,
    AuditKind,
    AuditRecord,
    ConfigError,
    OutcomeKind,
    PadOwner,
    Parked,
    ToolCall,
    ToolOutcome,
)
from quell.governance import Approvals
from tests.doors import _identity_bench as bench
from tests.doors._authority_house import KEYS, House, Service, a_house, in_a_house, settings_of
from tests.doors._cli_bench import Desk
from tests.doors._hand_bench import Room, hand_room, person
from tests.doors.test_server_authority_approvals import SECRET, post, sign

pytestmark = pytest.mark.timeout(30)


def _records(audit: Audit, kind: AuditKind) -> list[AuditRecord]:
    audit.flush()
    assert audit.verify().is_intact
    return list(audit.records(kinds=(kind,)))


def _bodies(room: Room, kind: AuditKind) -> list[dict[str, object]]:
    return [json.loads(record.body) for record in _records(room.authority.guard.audit, kind)]


def _with_something_to_lose(tmp_path: Path, story: Callable[[Room], Awaitable[None]]) -> None:
    """Tell a story while a call waits for people; what waited goes on after it, once, as if nothing had been."""

    async def tell() -> None:
        async with hand_room(tmp_path) as room:

            async def scale() -> ToolOutcome | Parked:
                return await room.call("scale", call="before", service="web", environment="staging", replicas=3)

            parked = await scale()
            assert isinstance(parked, Parked)
            await story(room)
            assert room.world.done == []
            room.decide(parked, person("bob", "approver"))
            ended = await scale()
            assert isinstance(ended, ToolOutcome)
            assert ended.kind is OutcomeKind.OK
            assert [(tool, call) for tool, _, _, call in room.world.done] == [("scale", "before")]

    asyncio.run(tell())


async def _turned_away(room: Room, tool: str, arguments: str) -> tuple[ToolOutcome, dict[str, object]]:
    """Call a tool with what cannot be one, and return what the caller and what the log is told."""
    before = len(_bodies(room, AuditKind.REFUSAL))
    told = await room.authority.toolbox.call(ToolCall(id="bad", tool=tool, arguments=arguments), caller=room.caller())
    assert isinstance(told, ToolOutcome)
    assert told.kind is OutcomeKind.DENIED
    assert room.world.reads == 0
    (body,) = _bodies(room, AuditKind.REFUSAL)[before:]
    assert body["reason"] == told.detail, "the log says what the caller was told"
    return told, body


# -- policies --------------------------------------------------------------------------------------------------------

POLICIES = {
    "cut to nothing": ("// forbids once stood here\n", "own-0.cedar: holds no policy"),
    "malformed": ('@id("own.broken")\npermit (principal, action', "own-0.cedar:1: cannot be read"),
    "never applies": (
        '@id("own.never")\npermit (principal, action, resource) when { context.approvals > 3 && context.approvals < 2 };',
        "own-0.cedar:1): can never apply",
    ),
    "of a tool that is not there": (
        '@id("own.gone")\npermit (principal, action == Quell::Action::"drop_table", resource);',
        'unrecognized action `Quell::Action::"drop_table"`',
    ),
    "not there at all": (None, "own-0.cedar cannot be read"),
}


@pytest.mark.parametrize("what", POLICIES)
def test_a_policy_that_cannot_decide_does_not_begin_to_and_the_last_good_ones_go_on(tmp_path: Path, what: str) -> None:
    text, words = POLICIES[what]
    good = '@id("own.good")\nforbid (principal, action, resource) when { context.host == "evil.example" };'

    async def tell() -> None:
        async with hand_room(tmp_path, policies=[good]) as room:
            path, digest = tmp_path / "own-0.cedar", room.authority.guard.policy.digest
            path.write_text(text) if text is not None else path.unlink()
            with pytest.raises(ConfigError) as refused:
                await room.authority.reload()
            told = " ".join([str(refused.value), *map(str, refused.value.problems)])
            assert words in told, told
            assert room.authority.guard.policy.digest == digest
            assert isinstance(await room.call("logs_search", service="web", query="x"), ToolOutcome)
            (body,) = _bodies(room, AuditKind.REFUSAL)
            assert body["verb"] == "policy.load"
            assert words in f"{body['reason']} {' '.join(cast('list[str]', body['problems']))}"

    asyncio.run(tell())


def test_a_process_does_not_start_with_a_policy_that_cannot_decide_and_the_log_says_why(tmp_path: Path) -> None:
    async def tell(policies: list[str]) -> None:
        async with hand_room(tmp_path, policies=policies) as room:
            bodies = _bodies(room, AuditKind.REFUSAL)
            assert [body["verb"] for body in bodies] == ["policy.load"]
            assert "own-0.cedar:1): can never apply" in str(bodies[0]["problems"])

    with pytest.raises(ConfigError, match="nothing is permitted"):
        asyncio.run(tell([str(POLICIES["never applies"][0])]))
    asyncio.run(tell([]))


def test_a_table_of_cases_that_is_no_toml_is_refused_with_its_place_and_on_record(tmp_path: Path) -> None:
    desk = Desk(at=tmp_path)
    (tmp_path / "table.toml").write_text('[[case]]\nname = "a"\ntool = \n')
    told = desk.quell("policy", "test", "table.toml")
    assert (told.code, told.out) == (ExitCode.USAGE, "")
    assert "table.toml is no TOML" in told.err
    assert "line 3" in told.err
    (line,) = desk.done("audit", "list", "--kind", "refusal", "--json").splitlines()
    body = json.loads(line)["record"]["body"]
    assert (body["verb"], body["about"]) == ("policy.test", "table.toml")
    assert "is no TOML" in body["reason"]


def test_settings_that_are_no_toml_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    desk = Desk(at=tmp_path)
    desk.done("audit", "list")
    kept = {path: path.read_bytes() for path in (tmp_path / ".quell").rglob("*") if path.is_file()}
    (tmp_path / "quell.toml").write_text('[governance]\npolicies = ["a.cedar"\n')
    told = desk.quell("policy", "check")
    assert (told.code, told.out) == (ExitCode.USAGE, "")
    assert "quell.toml:" in told.err
    assert "TOML syntax" in told.err
    assert {path: path.read_bytes() for path in (tmp_path / ".quell").rglob("*") if path.is_file()} == kept


# -- who calls -------------------------------------------------------------------------------------------------------


def _who(house: House) -> list[dict[str, object]]:
    return [json.loads(record.body) for record in _records(house.authority.guard.audit, AuditKind.IDENTITY)]


def test_a_key_of_another_tenant_sees_and_decides_nothing(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        guest, approval = await house.key("gu", "admin", tenant="acme"), house.ask()
        answer = {"decision": "approve", "digest": approval.digest}
        elsewhere = await house.http.get("/api/v1/incidents", headers=guest)
        assert (elsewhere.status_code, elsewhere.json()["error"]["code"]) == (403, "forbidden")
        for method in ("GET", "POST"):
            path = f"/api/v1/approvals/{approval.id}"
            told = await house.http.request(method, path, headers=guest, json=answer if method == "POST" else None)
            assert (told.status_code, told.json()["error"]["code"]) == (404, "unknown")
            assert approval.digest not in told.text
        assert _who(house)[-1]["reason"] == "it belongs to another tenant"
        (refused,) = house.bodies(AuditKind.REFUSAL)
        assert (refused["approval"], refused["code"]) == (approval.id, "unknown")
        found = house.find(approval)
        assert (found.status, found.votes) == (ApprovalStatus.REQUESTED, ())

    in_a_house(story, settings_of(tmp_path, identity=replace(KEYS, tenants=("local", "acme"))))


def test_an_expired_token_and_an_expired_key_are_nobody(tmp_path: Path) -> None:
    async def tell() -> None:
        async with Service() as service:
            provider = bench.Provider()
            service.answer = lambda _told: (200, {}, provider("https://anything"))
            issuer = OidcSettings(
                issuer=bench.ISSUER, audience="quell", jwks_url=f"{service.url}/keys", roles={"sre": "approver"}
            )
            async with a_house(
                settings_of(tmp_path, identity=IdentitySettings(oidc=(issuer,), api_keys=True))
            ) as house:
                approval, key = house.ask(), await house.key("vi", "approver")
                token = provider.token(at=house.clock.at)
                house.clock.forward(seconds=timedelta(days=2).total_seconds())
                for shown in ({"Authorization": f"Bearer {token}"}, key):
                    told = await house.http.post(
                        f"/api/v1/approvals/{approval.id}",
                        headers=shown,
                        json={"decision": "approve", "digest": approval.digest},
                    )
                    assert (told.status_code, told.json()["error"]["code"]) == (401, "unauthenticated")
                ways = [(body["way"], "expired" in str(body["reason"])) for body in _who(house)]
                assert ways == [("oidc", True), ("key", True)]
                assert all(token not in record.body for record in house.records())
                assert house.find(approval).votes == ()

    asyncio.run(tell())


def test_a_posted_decision_that_is_replayed_or_badly_signed_decides_nothing_and_is_on_record(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        approval, other = house.ask(quorum=2), house.ask(2)
        body, now_s = b'{"approved":true}', house.clock.at.timestamp()
        good = sign(body, decision=Approvals.decision_id_of(approval.id), at_s=now_s)
        assert (await post(house, approval, body, good)).status_code == 204
        votes = house.find(approval).votes
        said = set()
        for about in (approval, other):
            told = await post(house, about, body, good)
            assert told.status_code == 401
            said.add(told.text)
        assert len(said) == 1, "a replay learns no more than a forger"
        assert house.find(approval).votes == votes
        assert house.find(other).votes == ()
        (replayed,) = house.bodies(AuditKind.REFUSAL)
        assert (replayed["approval"], replayed["way"]) == (approval.id, "wire")
        last = _who(house)[-1]
        assert last["status"] == "401"
        assert str(last["path"]).endswith(Approvals.decision_id_of(other.id))
        assert all(SECRET not in record.body for record in house.records())

    in_a_house(story, settings_of(tmp_path, approvals=ApprovalSettings(webhook_secret=Secret(SECRET))))


# -- calls -----------------------------------------------------------------------------------------------------------

NESTED = 200_000
ARGUMENTS = {
    "ten megabytes": ('{"service":"web","query":"' + "x" * 10_000_000 + '"}', "at most 1,048,576 are read"),
    "ten megabytes of keys": ("{" + ",".join(f'"k{n}":1' for n in range(900_000)) + "}", "at most 1,048,576 are read"),
    "nested without end": ('{"service":"web","query":' + "[" * NESTED + "]" * NESTED + "}", "nested deeper than"),
    "nested and never closed": ('{"service":"web","query":' + '{"a":' * NESTED, "nested deeper than"),
    "nested a little too deep": ('{"service":"web","query":' + "[" * 40 + "]" * 40 + "}", "nested deeper than"),
    "a key twice": ('{"service":"web","service":"pay","query":"x"}', "comes twice"),
    "half a letter": ('{"service":"web","query":"\\ud800"}', "half of a surrogate pair"),
    "no number": ('{"service":"web","query":NaN}', "NaN is no JSON number"),
    "a number that no reader keeps": ('{"service":"web","query":9007199254740993}', "beyond plus or minus 2^53"),
}


@pytest.mark.parametrize("what", ARGUMENTS)
def test_arguments_that_are_a_weapon_are_refused_on_record_and_cost_nothing_else(tmp_path: Path, what: str) -> None:
    arguments, words = ARGUMENTS[what]

    async def story(room: Room) -> None:
        told, body = await _turned_away(room, "logs_search", arguments)
        assert words in told.detail
        assert body["tool"] == "logs_search"
        assert len(json.dumps(body)) < 4_000, "what is refused is not kept"

    _with_something_to_lose(tmp_path, story)


NAMES = {
    "a letter of another script": "s\u0441ale",
    "wide letters": "\uff53\uff43\uff41\uff4c\uff45",
    "a letter and its accent": "sca\u0301le",
    "nothing visible": "sc\u200bale",
    "written backwards": "\u202eelacs",
    "a tag behind it": "scale\U000e0041",
    "an end of text in it": "scale\x00.read",
    "a line of its own": "scale\nlogs_search",
    "another case": "SCALE",
    "spaces around it": " scale ",
    "a path": "../scale",
    "half a letter": "scale\ud800",
    "a group of policies": "class:read",
    "very long": "scale" * 100_000,
}


@pytest.mark.parametrize("what", NAMES)
def test_a_tool_is_found_by_exactly_its_name(tmp_path: Path, what: str) -> None:
    async def story(room: Room) -> None:
        told, body = await _turned_away(room, NAMES[what], '{"service":"web","environment":"staging","replicas":9}')
        assert "there is no such tool" in told.detail
        assert len(str(body["tool"])) <= 200
        assert len(str(body["tool_digest"])) == 64, "which name it was can be told, however it looks"

    _with_something_to_lose(tmp_path, story)


# -- the scratchpad --------------------------------------------------------------------------------------------------

HANDLES = (
    "/etc/passwd",
    "../../../../etc/passwd",
    "pad_../../secret.txt",
    "pad_" + "%2e%2e%2f" * 3 + "secret.txt",
    "file:///etc/passwd",
    "pad_\x00",
    "..",
    "",
)


async def _escapes(room: Room, handle: str) -> ToolOutcome:
    told = await room.call("head", handle=handle)
    assert isinstance(told, ToolOutcome)
    assert "canary" not in told.content + told.detail
    return told


def test_a_handle_that_is_a_path_reads_nothing_and_is_on_record(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("canary")

    async def story(room: Room) -> None:
        for number, handle in enumerate(HANDLES, start=1):
            told = await _escapes(room, handle)
            assert told.kind is OutcomeKind.DENIED, handle
            assert told.detail
            kept = [
                body
                for kind in (AuditKind.REFUSAL, AuditKind.OUTCOME)
                for body in _bodies(room, kind)
                if body.get("call") != "before" and (kind is AuditKind.REFUSAL or body["kind"] == "denied")
            ]
            assert len(kept) == number, handle

    _with_something_to_lose(tmp_path, story)


def test_a_link_in_the_place_of_a_result_is_not_followed_and_is_on_record(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("canary")

    async def story(room: Room) -> None:
        mine = PadOwner(session=room.run, tenant="local")
        kept, lost = [await room.authority.scratchpad.put(mine, letter * 90_000) for letter in "kl"]
        (place,) = (tmp_path / "scratchpad").rglob(f"{lost.handle.removeprefix('pad_')}.*")
        place.unlink()
        place.symlink_to(secret)
        told = await _escapes(room, lost.handle)
        assert told.kind is OutcomeKind.DENIED
        assert told.detail
        assert [body["kind"] for body in _bodies(room, AuditKind.OUTCOME)] == ["denied"]
        place.unlink()
        place.hardlink_to(secret)
        assert (await _escapes(room, lost.handle)).kind is OutcomeKind.DENIED
        whole = await room.call("head", handle=kept.handle)
        assert isinstance(whole, ToolOutcome)
        assert whole.kind is OutcomeKind.OK, "what others put aside is still there"

    _with_something_to_lose(tmp_path, story)
