"""Requests for approval and stops over real HTTP: read whole, decided once, by who may, and all of it on record."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import httpx2
import pytest

from quell.config import ApprovalSettings, McpServerSettings, McpSettings, Secret, Settings
from quell.domain import (
    Approval,
    ApprovalStatus,
    AuditKind,
    Fence,
    Intent,
    Offer,
    Principal,
    Recovery,
    ServerIdentity,
    ToolClass,
    ToolTerms,
)
from quell.governance import Approvals
from quell.runs import _effect_table
from tests._postgres import fresh_database
from tests.doors._authority_house import KEYS, RUN, House, frozen_with, in_a_house, settings_of

pytestmark = pytest.mark.timeout(30)

SECRET, SECOND, WRONG = (letter * 32 for letter in "abc")
SIGNED = ApprovalSettings(webhook_secret=Secret(SECRET), webhook_secondary=Secret(SECOND))
NOWHERE = "http://127.0.0.1:9/"
UNKNOWN = "01890000-0000-7000-8000-000000000000"


def sign(
    body: bytes, *, decision: str, at_s: float, secret: str = SECRET, context: str = "approval-decision"
) -> dict[str, str]:
    """Sign as the wire says, without any of our code."""
    timestamp = str(int(at_s))
    signed = f"{timestamp}.{context}:{decision}.".encode() + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return {
        "content-type": "application/json",
        "x-aura-timestamp": timestamp,
        "x-aura-signature-256": f"sha256={digest}",
    }


async def say(
    house: House, approval: Approval, headers: dict[str, str], decision: str = "approve", **changed: str
) -> httpx2.Response:
    body = {"decision": decision, "digest": approval.digest, **changed}
    return await house.http.post(f"/api/v1/approvals/{approval.id}", json=body, headers=headers)


async def post(house: House, approval: Approval, body: bytes, headers: dict[str, str]) -> httpx2.Response:
    return await house.http.post(
        f"/v1/approvals/{Approvals.decision_id_of(approval.id)}", content=body, headers=headers
    )


@pytest.mark.parametrize("dialect", ["sqlite", "postgresql"])
def test_a_person_reads_the_whole_question_and_decides_once(
    tmp_path: Path, dialect: str, request: pytest.FixtureRequest
) -> None:
    async def story(house: House) -> None:
        bo, vi = await house.key("bo", "approver"), await house.key("vi", "viewer")
        approval = house.ask()
        (row,) = (await house.http.get("/api/v1/approvals?status=requested&run=run_1", headers=vi)).json()["approvals"]
        assert (row["id"], row["digest"], row["quorum"]) == (approval.id, approval.digest, 1)
        shown = (await house.http.get(f"/api/v1/approvals/{approval.id}", headers=bo)).json()
        assert shown["text"] == Approvals.show(approval, form="text")
        assert shown["question"] == json.loads(Approvals.show(approval, form="json"))
        answer = await say(house, approval, bo, digest=approval.digest[:8])
        assert answer.status_code == 200, answer.text
        assert (answer.json()["change"], answer.json()["approval"]["status"]) == ("settled", "approved")
        again = await say(house, approval, bo)
        assert (again.status_code, again.json()["change"]) == (200, "none")
        late = await say(house, approval, await house.key("cy", "approver"), "reject", reason="no")
        assert (late.status_code, late.json()["error"]["code"]) == (410, "gone")
        assert (await house.http.get("/api/v1/approvals?status=requested", headers=vi)).json()["approvals"] == []
        (told,) = house.bodies(AuditKind.APPROVAL)
        assert (told["approval"], told["digest"], told["verdict"], told["status"], told["way"]) == (
            approval.id,
            approval.digest,
            "approve",
            "approved",
            "api",
        )
        assert house.records(AuditKind.APPROVAL)[0].principal == "bo"
        assert house.authority.guard.audit.verify().is_intact

    if dialect == "sqlite":
        in_a_house(story, settings_of(tmp_path, identity=KEYS))
        return
    with fresh_database(request.getfixturevalue("postgres_url")) as url:
        in_a_house(story, settings_of(tmp_path, identity=KEYS, url=url))


def test_each_refusal_has_its_status_and_changes_nothing(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        approver = {name: await house.key(name, "approver") for name in ("ana", "bo")}
        viewer, scoped = await house.key("vi", "viewer"), await house.key("sc", "approver", scopes=("verb:run.*",))
        acme = await house.key("eve", "approver", tenant="acme")
        approval = house.ask()
        table = [
            (approver["bo"], {"digest": "0" * 64}, 409, "mismatch"),
            (approver["bo"], {"digest": approval.digest[:3]}, 400, None),
            (approver["bo"], {"decision": "reject"}, 400, None),
            (approver["bo"], {"decision": "maybe"}, 400, None),
            (approver["bo"], {"more": "1"}, 400, None),
            (approver["ana"], {}, 403, "forbidden"),
            (viewer, {}, 403, "forbidden"),
            (scoped, {}, 403, "forbidden"),
            (acme, {}, 404, "unknown"),
            ({}, {}, 401, "unauthenticated"),
        ]
        for headers, changed, status, code in table:
            body = {"decision": "approve", "digest": approval.digest, **changed}
            answer = await house.http.post(f"/api/v1/approvals/{approval.id}", json=body, headers=headers)
            assert (answer.status_code, answer.json()["error"].get("code")) == (status, code), (changed, answer.text)
            assert house.find(approval).status is ApprovalStatus.REQUESTED
            assert house.find(approval).votes == ()
        for raw in (b"", b"[]", b"{", b"\xff", b'{"decision":' * 5000, b" " * 200_000):
            answer = await house.http.post(f"/api/v1/approvals/{approval.id}", content=raw, headers=approver["bo"])
            assert answer.status_code in {400, 413}, raw[:20]
        for path in ("/api/v1/approvals?status=dreaming", "/api/v1/approvals?limit=0"):
            assert (await house.http.get(path, headers=viewer)).status_code == 400
        for identifier in ("apr_none", "x" * 300, "%00"):
            assert (await house.http.get(f"/api/v1/approvals/{identifier}", headers=viewer)).status_code == 404
        assert (await house.http.get(f"/api/v1/approvals/{approval.id}", headers=acme)).status_code == 404
        refusals = [(record.principal, json.loads(record.body)["code"]) for record in house.records(AuditKind.REFUSAL)]
        assert Counter(refusals) == Counter(
            [("bo", "mismatch"), ("ana", "forbidden"), ("vi", "forbidden"), ("eve", "unknown")]
        )
        house.clock.forward(seconds=3600)
        late = await say(house, approval, approver["bo"] | {})
        assert (late.status_code, late.json()["error"]["code"]) == (410, "gone")

    in_a_house(story, settings_of(tmp_path, identity=replace(KEYS, tenants=("local", "acme"))))


def pinned(settings: Settings) -> Settings:
    """Return the settings with a tool server that nobody has to reach."""
    return replace(
        settings, mcp=McpSettings(servers={"far": McpServerSettings(transport="http_streamable", url=NOWHERE)})
    )


async def pin(house: House) -> None:
    schema = {
        "type": "object",
        "properties": {"replicas": {"type": "integer", "maximum": 10}},
        "required": ["replicas"],
    }
    offer = Offer(
        server="far",
        original="scale",
        definition=json.dumps({"name": "scale", "inputSchema": schema}),
        digest="sha256:d",
        identity=ServerIdentity(address=NOWHERE),
    )
    terms = ToolTerms(tool_class=ToolClass.REVERSIBLE, recovery=Recovery.NATURAL)
    with house.app.runs.database.writing() as connection:
        house.authority.pins.accept(connection, offer, terms, by=Principal(user="ana", roles=("operator",)))
    await house.authority.reload()


def test_a_person_edits_a_request_and_others_decide_about_the_new_one(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        await pin(house)
        bo, cy = await house.key("bo", "approver"), await house.key("cy", "approver")
        approval = house.ask(principal=replace(RUN, agent_tools=("*",), workflow_tools=("*",)))
        edit = {"decision": "edit", "digest": approval.digest, "arguments": {"replicas": 5}}
        path = f"/api/v1/approvals/{approval.id}"
        ana = await house.key("ana", "approver")
        for headers, changed, status in (
            (bo, {"digest": "0" * 64}, 409),
            (bo, {"arguments": {"replicas": 11}}, 403),
            (bo, {"arguments": None}, 400),
            (bo, {"decision": "approve"}, 400),
            (bo, {"answers": {"a": "b"}}, 400),
            (ana, {}, 403),
        ):
            answer = await house.http.post(path, json=edit | changed, headers=headers)
            assert answer.status_code == status, (changed, answer.text)
            assert house.find(approval).status is ApprovalStatus.REQUESTED
        unasked = await house.http.post(
            path, json={"decision": "approve", "digest": approval.digest, "answers": {"a": "b"}}, headers=bo
        )
        assert unasked.status_code == 400
        house.clock.at += timedelta(seconds=1)
        answer = await house.http.post(path, json=edit, headers=bo)
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert (told["change"], house.find(approval).status) == ("edited", ApprovalStatus.SUPERSEDED)
        new = told["approval"]["id"]
        assert told["question"]["supersedes"] == approval.id
        assert told["question"]["calls"][0]["arguments"] == '{"replicas":5}'
        vote = {"decision": "approve", "digest": told["approval"]["digest"]}
        for headers, status in ((bo, 403), (ana, 403), (cy, 200)):
            said = await house.http.post(f"/api/v1/approvals/{new}", json=vote, headers=headers)
            assert said.status_code == status
        late = await house.http.post(path, json=edit, headers=cy)
        assert late.status_code == 410

    in_a_house(story, pinned(settings_of(tmp_path, identity=KEYS)))


def test_what_cannot_be_undone_takes_two_people(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        bo, cy = await house.key("bo", "approver"), await house.key("cy", "approver")
        approval = house.ask(quorum=2)
        first = (await say(house, approval, bo)).json()
        assert (first["change"], first["approval"]["status"], len(first["approval"]["votes"])) == (
            "counted",
            "requested",
            1,
        )
        assert (await say(house, approval, bo)).json()["change"] == "none"
        assert (await say(house, approval, cy)).json()["approval"]["status"] == "approved"

    in_a_house(story, settings_of(tmp_path, identity=KEYS))


def test_of_many_who_answer_at_once_one_settles_it(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        people = [await house.key(f"p{number}", "approver") for number in range(8)]
        approval = house.ask()
        answers = await asyncio.gather(*(say(house, approval, headers) for headers in people))
        assert Counter(answer.status_code for answer in answers) == {200: 1, 410: 7}
        assert len(house.find(approval).votes) == 1
        assert len(house.bodies(AuditKind.APPROVAL)) == 1

    in_a_house(story, settings_of(tmp_path, identity=KEYS))


def test_the_owner_does_not_approve_their_own_run(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        own = house.ask(principal=replace(RUN, user="owner"))
        assert (await say(house, own, {})).status_code == 403
        other = house.ask(2)
        assert (await say(house, other, {})).status_code == 200

    in_a_house(story, settings_of(tmp_path))


def test_secrets_that_are_held_are_not_shown(tmp_path: Path) -> None:
    canary = "canary-7f3a9c1e5b8d2046"

    async def story(house: House) -> None:
        call = frozen_with(1, arguments=json.dumps({"note": canary}, separators=(",", ":")), name=canary)
        approval = house.ask(call=call)
        for path in ("/api/v1/approvals", f"/api/v1/approvals/{approval.id}"):
            shown = await house.http.get(path)
            assert shown.status_code == 200
            assert canary not in shown.text
        assert (await say(house, approval, {})).status_code == 200, "the digest is that of the real one"

    settings = settings_of(tmp_path, approvals=ApprovalSettings(webhook_headers={"X-Key": Secret(canary)}))
    in_a_house(story, settings)


def test_a_posted_decision_needs_auras_signature_and_counts_once(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        approval = house.ask()
        decision = Approvals.decision_id_of(approval.id)
        now_s = house.clock.at.timestamp()
        yes, no = b'{"approved":true}', b'{"approved":false,"reason":"no"}'
        good = sign(yes, decision=decision, at_s=now_s)
        hostile = {
            "nothing": (yes, {"content-type": "application/json"}),
            "an identity instead": (yes, await house.key("bo", "approver")),
            "wrong key": (yes, sign(yes, decision=decision, at_s=now_s, secret=WRONG)),
            "too old": (yes, sign(yes, decision=decision, at_s=now_s - 301)),
            "too new": (yes, sign(yes, decision=decision, at_s=now_s + 301)),
            "another body": (no, good),
            "another decision": (yes, sign(yes, decision=UNKNOWN, at_s=now_s)),
            "another direction": (yes, sign(yes, decision=decision, at_s=now_s, context="approval-request")),
            "no prefix": (yes, good | {"x-aura-signature-256": good["x-aura-signature-256"][7:]}),
        }
        said = set()
        for name, (body, headers) in hostile.items():
            answer = await post(house, approval, body, headers)
            assert answer.status_code == 401, name
            said.add(answer.text)
        for identifier in ("not-a-uuid", UNKNOWN):
            said.add((await house.http.post(f"/v1/approvals/{identifier}", content=yes, headers=good)).text)
        assert len(said) == 1, "the same words for everything that is wrong"
        assert house.find(approval).votes == ()
        assert (await post(house, approval, yes, good)).status_code == 204
        (vote,) = house.find(approval).votes
        assert (vote.voter, vote.verdict, vote.digest) == ("webhook", "approve", approval.digest)
        replayed = await post(house, approval, yes, good)
        assert replayed.status_code == 401, "a signature is taken once"
        fresh = sign(no, decision=decision, at_s=now_s, secret=SECOND)
        assert (await post(house, approval, no, fresh)).status_code == 404, "one decision wins, later ones find nothing"
        assert house.find(approval).status is ApprovalStatus.APPROVED
        unknown = sign(yes, decision=UNKNOWN, at_s=now_s)
        answer = await house.http.post(f"/v1/approvals/{UNKNOWN}", content=yes, headers=unknown)
        assert answer.status_code == 404
        (told,) = house.bodies(AuditKind.APPROVAL)
        assert (told["way"], told["verdict"]) == ("wire", "approve")

    in_a_house(story, settings_of(tmp_path, identity=KEYS, approvals=SIGNED))


def test_a_signed_decision_that_says_something_else_is_told_what(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        approval = house.ask()
        decision, now_s = Approvals.decision_id_of(approval.id), house.clock.at.timestamp()
        table = [
            (b"{", 400),
            (b"[]", 422),
            (b"{}", 422),
            (b'{"approved":"yes"}', 422),
            (b'{"approved":true,"more":1}', 422),
            (b'{"approved":true,"approved":false}', 422),
        ]
        for body, status in table:
            answer = await post(house, approval, body, sign(body, decision=decision, at_s=now_s))
            assert answer.status_code == status, (body, answer.text)
        text = sign(b'{"approved":true}', decision=decision, at_s=now_s) | {"content-type": "text/plain"}
        assert (await post(house, approval, b'{"approved":true}', text)).status_code == 415
        assert house.find(approval).votes == ()
        silent = b'{"approved":false}'
        assert (await post(house, approval, silent, sign(silent, decision=decision, at_s=now_s))).status_code == 204
        assert house.find(approval).status is ApprovalStatus.REJECTED, "a rejection without a reason still is one"

    in_a_house(story, settings_of(tmp_path, approvals=SIGNED))


def test_fifty_posted_decisions_at_once_decide_once(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        approval = house.ask()
        decision, now_s = Approvals.decision_id_of(approval.id), house.clock.at.timestamp()
        bodies = [json.dumps({"approved": number % 2 == 0, "reason": f"r{number}"}).encode() for number in range(50)]
        answers = await asyncio.gather(
            *(post(house, approval, body, sign(body, decision=decision, at_s=now_s)) for body in bodies)
        )
        assert Counter(answer.status_code for answer in answers) == {204: 1, 404: 49}
        assert len(house.find(approval).votes) == 1

    in_a_house(story, settings_of(tmp_path, approvals=SIGNED))


def test_without_a_signing_secret_a_posted_decision_needs_an_identity(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        approval, yes = house.ask(), {"approved": True}
        path = f"/v1/approvals/{Approvals.decision_id_of(approval.id)}"
        assert (await house.http.post(path, json=yes)).status_code == 401
        assert (await house.http.post("/v1/approvals/nonsense", json=yes)).status_code == 401
        bo, ana = await house.key("bo", "approver"), await house.key("ana", "approver")
        assert (await house.http.post("/v1/approvals/nonsense", json=yes, headers=bo)).status_code == 400
        assert (await house.http.post(path, json=yes, headers=ana)).status_code == 403, "nobody approves their own"
        assert (await house.http.post(path, json=yes, headers=bo)).status_code == 204
        assert (await house.http.post(path, json=yes, headers=bo)).status_code == 404
        assert [vote.voter for vote in house.find(approval).votes] == ["bo"]

    in_a_house(story, settings_of(tmp_path, identity=KEYS))


def test_a_kill_and_a_freeze_are_set_listed_and_lifted_on_record(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        op, ad, vi = await house.key("op", "operator"), await house.key("ad", "admin"), await house.key("vi", "viewer")
        kill = {"kind": "kill", "reason": "it runs wild", "tool": "scale*"}
        window = {"starts_at": "2026-11-20T11:00:00Z", "ends_at": "2026-11-21T11:00:00Z"}
        assert (await house.http.post("/api/v1/switches", json=kill, headers=vi)).status_code == 403
        made = await house.http.post("/api/v1/switches", json=kill, headers=op)
        assert made.status_code == 201, made.text
        switch = made.json()["switch"]
        assert (switch["kind"], switch["tenant"], switch["tool"], made.json()["in_flight"]) == (
            "kill",
            "local",
            "scale*",
            [],
        )
        freeze = await house.http.post(
            "/api/v1/switches", json={"kind": "freeze", "reason": "holidays", **window}, headers=op
        )
        assert freeze.status_code == 201
        assert house.authority.guard.switches.glance().switches
        listed = (await house.http.get("/api/v1/switches", headers=vi)).json()["switches"]
        assert {row["kind"] for row in listed} == {"kill", "freeze"}
        for body, status in (
            ({"kind": "freeze", "reason": "x"}, 400),
            (
                {"kind": "freeze", "reason": "x", "starts_at": "2026-11-20T11:00:00", "ends_at": "2026-11-21T11:00:00"},
                400,
            ),
            ({**kill, **window}, 400),
            ({"kind": "kill", "reason": " "}, 400),
            ({"kind": "kill"}, 400),
            ({**kill, "tenant": "*"}, 403),
        ):
            answer = await house.http.post("/api/v1/switches", json=body, headers=op)
            assert answer.status_code == status, (body, answer.text)
        path = f"/api/v1/switches/{switch['id']}"
        assert (await house.http.delete(path, headers=ad)).status_code == 400
        assert (await house.http.delete(f"{path}?reason=quiet", headers=op)).status_code == 403
        assert (await house.http.delete(f"{path}?reason=quiet", headers=ad)).status_code == 200
        assert (await house.http.delete(f"{path}?reason=quiet", headers=ad)).status_code == 410
        assert (await house.http.delete("/api/v1/switches/swt_x?reason=quiet", headers=ad)).status_code == 404
        told = [(record.principal, json.loads(record.body)) for record in house.records(AuditKind.SWITCH)]
        assert [(who, body.get("kind", "lift")) for who, body in told] == [
            ("op", "kill"),
            ("op", "freeze"),
            ("ad", "lift"),
        ]

    in_a_house(story, settings_of(tmp_path, identity=KEYS))


def test_what_passed_its_time_is_ended_told_and_listed(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        approval = house.ask()
        intent = Intent(call=replace(approval.terms.calls[0].call, run="run_gone"), recovery=Recovery.BLIND, user="ana")
        fence = Fence(run="run_gone", dispatch=1, token="slot")
        with house.app.runs.database.writing(durability="written") as connection:
            entry = _effect_table.insert(connection, intent, fence=fence, at=house.clock.at)
            assert entry is not None
            _effect_table.start(connection, entry, fence=fence, at=house.clock.at, is_in_doubt=False)
        assert (await house.http.get("/api/v1/effects?state=unknown")).json()["effects"] == []
        house.clock.forward(seconds=1200)
        await house.app.warden.tend()
        await house.app.warden.tend()
        (row,) = (await house.http.get("/api/v1/effects?state=unknown")).json()["effects"]
        assert (row["run"], row["tool"], row["reason"]) == ("run_gone", "scale", "abandoned")
        (told,) = house.bodies(AuditKind.OUTCOME)
        assert (told["effect"], told["state"]) == (entry.key, "unknown")
        expired = (await house.http.get("/api/v1/approvals?status=expired")).json()["approvals"]
        assert [each["id"] for each in expired] == [approval.id]
        for path, status in (("?state=dreaming", 400), ("?limit=0", 400), ("?state=unknown&run=run_other", 200)):
            assert (await house.http.get(f"/api/v1/effects{path}")).status_code == status

    in_a_house(story, settings_of(tmp_path))
