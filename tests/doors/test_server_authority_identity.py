"""Who calls: every way of showing an identity over real HTTP, what stays open, and that a refusal tells nothing."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from starlette.routing import Route

from quell.config import IdentitySettings, OidcSettings, ProxySettings, ServerSettings, load
from quell.domain import AuditKind, ConfigError
from quell.server import asgi
from tests.doors import _identity_bench as bench
from tests.doors._authority_house import KEYS, House, Service, a_house, in_a_house, settings_of

pytestmark = pytest.mark.timeout(30)

OPEN = {"/health", "/v1/logs", "/v1/traces", "/v1/metrics", "/webhooks/alertmanager"}
JSON = {"content-type": "application/json"}
PROXY = ProxySettings(networks=("127.0.0.1/32",), roles_header="X-Groups", roles={"sre": "operator"})
ALERTS = {"version": "4", "status": "firing", "alerts": []}
NOT_BELIEVED = {
    "nothing": {},
    "no bearer": {"Authorization": "Basic YTpi"},
    "no such key": {"Authorization": "Bearer qk_" + "0" * 26 + "_" + "0" * 64},
    "a malformed key": {"Authorization": "Bearer qk_x"},
    "a token where none are taken": {"Authorization": "Bearer a.b.c"},
    "a proxy's header from elsewhere": {"X-Forwarded-User": "root"},
}


def every_call(house: House) -> list[tuple[str, str]]:
    """Return each route that is not open, with every method that it takes."""
    routes = [route for route in asgi(house.app).routes if isinstance(route, Route)]
    return [
        (method, route.path.replace("{id}", "x").replace("{form}", "md"))
        for route in routes
        for method in sorted(route.methods or ())
        if route.path not in OPEN
    ]


def test_nobody_gets_through_any_route_and_is_told_why(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        said = set()
        calls = every_call(house)
        assert len(calls) > 20
        # First those whose reasons are looked for: of a flood only the first stand in the record.
        for name, headers in NOT_BELIEVED.items():
            answer = await house.http.get("/api/v1/runs", headers=headers)
            assert answer.status_code == 401, name
            said.add(answer.text)
        for method, path in calls:
            answer = await house.http.request(method, path, json={})
            assert answer.status_code == 401, (method, path)
            assert answer.headers["www-authenticate"].startswith("Bearer")
            if method != "HEAD":
                said.add(answer.text)
        assert len(said) == 1, "a refusal says the same, whatever was wrong"
        error = json.loads(said.pop())["error"]
        assert error["code"] == "unauthenticated"
        reasons = [str(body["reason"]) for body in house.bodies(AuditKind.IDENTITY)]
        for reason in ("no identity was shown", "there is no such key", "malformed", "tokens are not accepted"):
            assert any(reason in told for told in reasons), reason

    in_a_house(story, settings_of(tmp_path, identity=KEYS))


def test_without_any_identity_the_owner_is_who_sits_at_this_machine(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        for path in ("/api/v1/runs", "/api/v1/incidents", "/api/v1/approvals", "/api/v1/switches", "/api/v1/effects"):
            assert (await house.http.get(path)).status_code == 200, path
        for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "x_forwarded_for"):
            passed_on = await house.http.get("/api/v1/runs", headers={header: "10.1.2.3"})
            assert passed_on.status_code == 401, f"{header}: it came through a proxy, from anywhere"

    in_a_house(story, settings_of(tmp_path))


@pytest.mark.parametrize(("owner", "status"), [("auto", 401), ("none", 401), ("kept", 200)])
def test_the_owner_stays_beside_other_identities_only_where_the_operator_keeps_it(
    tmp_path: Path, owner: str, status: int
) -> None:
    async def story(house: House) -> None:
        assert (await house.http.get("/api/v1/runs")).status_code == status

    identity = replace(KEYS, local_owner=owner)  # type: ignore[arg-type]  # one of its words
    in_a_house(story, settings_of(tmp_path, identity=identity))


def test_a_key_opens_what_its_roles_and_scopes_open(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        viewer = await house.key("vi", "viewer")
        scoped = await house.key("sc", "viewer", scopes=("verb:run.*",))
        outsider = await house.key("ou", "guest")
        collector = await house.key("co", "guest", scopes=("verb:change.write",))
        change = {"change": "deploy", "subject": "service.version"}
        table = [
            ("GET", "/api/v1/runs", viewer, 200),
            ("GET", "/api/v1/incidents", viewer, 200),
            ("POST", "/api/v1/changes", viewer, 403),
            ("GET", "/api/v1/runs", scoped, 200),
            ("GET", "/api/v1/incidents", scoped, 403),
            ("GET", "/api/v1/runs", outsider, 403),
            ("POST", "/api/v1/changes", collector, 503),  # through the gate, and there is no store
            ("GET", "/api/v1/runs", collector, 403),
        ]
        for method, path, headers, status in table:
            answer = await house.http.request(method, path, headers=headers, json=change if method == "POST" else None)
            assert answer.status_code == status, (method, path, status, answer.text)
            if status == 403:
                assert answer.json()["error"]["code"] == "forbidden"
                assert "insufficient_scope" in answer.headers["www-authenticate"]
        who = {record.principal for record in house.records(AuditKind.IDENTITY)}
        assert who == {"vi", "sc", "ou", "co"}

    in_a_house(story, settings_of(tmp_path, identity=KEYS))


def test_a_key_that_ended_opens_nothing(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        headers = await house.key("vi", "viewer")
        assert (await house.http.get("/api/v1/runs", headers=headers)).status_code == 200
        house.clock.forward(seconds=timedelta(days=2).total_seconds())
        assert (await house.http.get("/api/v1/runs", headers=headers)).status_code == 401
        assert any("expired" in str(body["reason"]) for body in house.bodies(AuditKind.IDENTITY))

    in_a_house(story, settings_of(tmp_path, identity=KEYS))


def test_what_names_no_tenant_belongs_to_the_first_one(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        guest = await house.key("gu", "admin", tenant="acme")
        assert (await house.http.get("/api/v1/incidents", headers=guest)).status_code == 403
        assert (await house.http.get("/api/v1/audit/checkpoint", headers=guest)).status_code == 403
        own = house.ask(principal=replace(bench.ADMIN, user="ana", tenant="acme", agent="bot"))
        house.ask(2)
        listed = (await house.http.get("/api/v1/approvals", headers=guest)).json()["approvals"]
        assert [row["id"] for row in listed] == [own.id]

    in_a_house(story, settings_of(tmp_path, identity=replace(KEYS, tenants=("local", "acme"))))


def test_a_trusted_proxy_names_people_and_a_header_alone_names_nobody(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        named = {"X-Forwarded-User": "vera", "X-Groups": "sre,other", "X-Forwarded-For": "10.9.8.7"}
        assert (await house.http.get("/api/v1/runs", headers=named)).status_code == 200
        roleless = {"X-Forwarded-User": "vera", "X-Groups": "other"}
        assert (await house.http.get("/api/v1/runs", headers=roleless)).status_code == 403
        for spoof in ({"X_Forwarded_User": "root"}, {"X-Forwarded-User": "a,b"}, {"X-Groups": "sre"}):
            assert (await house.http.get("/api/v1/runs", headers=spoof)).status_code == 401, spoof
        twice = [("X-Forwarded-User", "vera"), ("X-Forwarded-User", "root")]
        assert (await house.http.get("/api/v1/runs", headers=twice)).status_code == 401

    in_a_house(story, settings_of(tmp_path, identity=IdentitySettings(proxy=(PROXY,))))


def test_a_proxy_elsewhere_is_not_believed_from_here_whatever_a_header_says_of_the_way(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        for way in ({}, {"X-Forwarded-For": "10.0.0.5"}, {"Forwarded": "for=10.0.0.5"}):
            headers = {"X-Forwarded-User": "root", **way}
            assert (await house.http.get("/api/v1/runs", headers=headers)).status_code == 401, way

    elsewhere = replace(PROXY, networks=("10.0.0.5/32",), default_roles=("admin",))
    in_a_house(story, settings_of(tmp_path, identity=IdentitySettings(proxy=(elsewhere,))))


def test_a_token_is_believed_by_keys_that_are_fetched(tmp_path: Path) -> None:
    async def run() -> None:
        async with Service() as service:
            provider = bench.Provider()
            service.answer = lambda _told: (200, {}, provider("https://anything"))
            issuer = OidcSettings(
                issuer=bench.ISSUER, audience="quell", jwks_url=f"{service.url}/keys", roles={"sre": "operator"}
            )
            async with a_house(settings_of(tmp_path, identity=IdentitySettings(oidc=(issuer,)))) as house:
                token = provider.token(at=house.clock.at)
                good = await house.http.get("/api/v1/runs", headers={"Authorization": f"Bearer {token}"})
                assert good.status_code == 200
                again = await house.http.get("/api/v1/runs", headers={"Authorization": f"Bearer {token}"})
                assert again.status_code == 200
                assert [told.path for told in service.told] == ["/keys"], "keys are asked for once"
                old = provider.token(at=house.clock.at - timedelta(hours=2))
                refused = await house.http.get("/api/v1/runs", headers={"Authorization": f"Bearer {old}"})
                assert refused.status_code == 401
                assert old not in refused.text
                assert any("expired" in str(body["reason"]) for body in house.bodies(AuditKind.IDENTITY))
                assert all(old not in record.body for record in house.records())

    asyncio.run(run())


@pytest.mark.parametrize(
    "answer",
    [
        (500, {}, b"no"),
        (302, {"location": "http://127.0.0.1:1/keys"}, b""),
        (200, {}, b"x" * 1_100_000),
        (200, {}, b"no keys"),
    ],
)
def test_keys_that_cannot_be_had_let_nobody_in(tmp_path: Path, answer: tuple[int, dict[str, str], bytes]) -> None:
    async def run() -> None:
        async with Service() as service:
            service.answer = lambda _told: answer
            issuer = OidcSettings(issuer=bench.ISSUER, audience="quell", jwks_url=f"{service.url}/keys")
            async with a_house(settings_of(tmp_path, identity=IdentitySettings(oidc=(issuer,)))) as house:
                token = bench.Provider().token(at=house.clock.at)
                refused = await house.http.get("/api/v1/runs", headers={"Authorization": f"Bearer {token}"})
                assert refused.status_code == 401
                assert any("keys of its issuer" in str(body["reason"]) for body in house.bodies(AuditKind.IDENTITY))

    asyncio.run(run())


def test_telemetry_and_alerts_come_in_on_loopback_as_ever_and_through_a_proxy_with_a_key_alone(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        passed_on = {"X-Forwarded-For": "10.1.2.3"}
        otlp = {**JSON, **passed_on}
        assert (await house.http.get("/health")).status_code == 503, "no store, and no identity asked for"
        assert "parts" in (await house.http.get("/health")).json()
        assert (await house.http.get("/health", headers=passed_on)).json() == {
            "kind": "health",
            "ok": False,
            "status": "degraded",
        }
        assert (await house.http.post("/webhooks/alertmanager", json=ALERTS)).status_code == 200
        assert (await house.http.post("/v1/logs", content=b"{}", headers=JSON)).status_code == 503
        for header in ("X-Forwarded-For", "Forwarded", "Via", "X-Real-IP", "X-Client-IP", "True-Client-IP"):
            told = await house.http.post("/webhooks/alertmanager", json=ALERTS, headers={header: "10.1.2.3"})
            assert told.status_code == 401, header
        refused = await house.http.post("/v1/logs", content=b"{}", headers=otlp)
        assert refused.status_code == 401
        assert refused.json()["code"] == 16, "UNAUTHENTICATED, in the way of OTLP"
        viewer = await house.key("vi", "viewer")
        sender = await house.key("se", "guest", scopes=("verb:telemetry.write",))
        assert (await house.http.post("/v1/logs", content=b"{}", headers={**otlp, **viewer})).status_code == 403
        assert (await house.http.post("/v1/logs", content=b"{}", headers={**otlp, **sender})).status_code == 503
        alerts = await house.http.post("/webhooks/alertmanager", json=ALERTS, headers={**passed_on, **sender})
        assert alerts.status_code == 403, "one scope is not the other"
        caller = await house.key("al", "guest", scopes=("verb:alert.write",))
        alerts = await house.http.post("/webhooks/alertmanager", json=ALERTS, headers={**passed_on, **caller})
        assert alerts.status_code == 200

    in_a_house(story, settings_of(tmp_path, identity=KEYS))


def test_beyond_loopback_is_listened_on_with_an_identity_alone(tmp_path: Path) -> None:
    wide = ServerSettings(host="0.0.0.0", port=0, names=("Quell.example",))

    async def story(house: House) -> None:
        assert (await house.http.get("/api/v1/runs")).status_code == 401
        headers = await house.key("vi", "viewer")
        assert (await house.http.get("/api/v1/runs", headers=headers)).status_code == 200
        for host, status in (("10.2.3.4:7433", 200), ("quell.example", 200), ("evil.example", 421), ("", 421)):
            answer = await house.http.get("/api/v1/runs", headers={**headers, "Host": host})
            assert answer.status_code == status, host
        cross = await house.http.get("/api/v1/runs", headers={**headers, "Origin": "https://evil.example"})
        assert cross.status_code == 403

    async def alone() -> None:
        async with a_house(settings_of(tmp_path / "a", server=wide)):
            pytest.fail("it listens")

    with pytest.raises(ConfigError, match="loopback"):
        asyncio.run(alone())
    in_a_house(story, settings_of(tmp_path / "b", server=wide, identity=KEYS))


def test_a_configuration_beyond_loopback_names_who_is_asked(tmp_path: Path) -> None:
    written = tmp_path / "quell.toml"
    written.write_text('[server]\nhost = "0.0.0.0"\n')
    with pytest.raises(ConfigError) as refused:
        load(written, env={})
    (problem,) = refused.value.problems
    assert (problem.path, problem.source.rpartition(":")[2]) == ("server.host", "2")
    assert "[identity]" in problem.hint
    for way in ("api_keys = true", '[[identity.proxy]]\nnetworks = ["10.0.0.5/32"]'):
        table = way if way.startswith("[") else f"[identity]\n{way}"
        written.write_text(f'[server]\nhost = "0.0.0.0"\n{table}\n')
        assert load(written, env={}).settings.server.host == "0.0.0.0"
    written.write_text('[server]\nhost = "0.0.0.0"\n[identity]\nlocal_owner = "kept"\n')
    with pytest.raises(ConfigError):
        load(written, env={})


def test_two_sources_of_the_same_names_are_no_identity(tmp_path: Path) -> None:
    issuer = OidcSettings(issuer="https://one", audience="quell", jwks_url="https://one/keys")
    identity = IdentitySettings(oidc=(issuer,), proxy=(PROXY,))

    async def opens() -> None:
        async with a_house(settings_of(tmp_path, identity=identity)):
            pytest.fail("it serves")

    with pytest.raises(ConfigError) as refused:
        asyncio.run(opens())
    assert "user_prefix" in str(refused.value.hint)


def test_a_flood_of_refusals_does_not_flood_the_record(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        for _ in range(80):
            assert (await house.http.get("/api/v1/runs")).status_code == 401
        assert len(house.records(AuditKind.IDENTITY)) == 50
        house.clock.forward(seconds=11)
        await house.http.get("/api/v1/runs")
        assert house.bodies(AuditKind.IDENTITY)[-1]["not_recorded_before"] == 30

    in_a_house(story, settings_of(tmp_path, identity=KEYS))


def test_refusals_and_grants_leave_a_record_that_verifies(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        await house.http.get("/api/v1/runs")
        headers = await house.key("vi", "viewer")
        signed = (await house.http.get("/api/v1/audit/checkpoint", headers=headers)).json()
        assert signed["checkpoint"]["size"] >= 1
        assert len(signed["public_key"]) > 20
        assert house.authority.guard.audit.verify().is_intact
        secret = headers["Authorization"].removeprefix("Bearer ")
        everything = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert secret.encode() not in everything

    in_a_house(story, settings_of(tmp_path, identity=KEYS))


def test_the_settings_of_the_page_are_accepted_together(tmp_path: Path) -> None:
    page = Path(__file__).parents[2] / "docs" / "how-to" / "put-identity-in-front.md"
    blocks = re.findall(r"```toml\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(blocks) == 4
    written = tmp_path / "quell.toml"
    written.write_text("\n".join(blocks).replace('host = "0.0.0.0"', "port = 0"))
    env = {"APPROVAL_SECRET": "s" * 32, "CHAT_WEBHOOK": "https://chat.example/x"}
    settings = replace(load(written, env=env).settings, state_dir=tmp_path, store=settings_of(tmp_path).store)

    async def story(house: House) -> None:
        assert house.app.warden.plan.owner is None
        assert (await house.http.get("/api/v1/runs")).status_code == 401

    in_a_house(story, settings)
