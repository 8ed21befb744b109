"""A server with real authority on a real port, a small world of tools behind it, and people who call it."""

from __future__ import annotations

import asyncio
import json
import os
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Self

import httpx2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from quell.app import App, Authority, open_app
from quell.config import (
    ApprovalSettings,
    IdentitySettings,
    JournalSettings,
    Secret,
    ServerSettings,
    Settings,
    StoreSettings,
)
from quell.domain import (
    Approval,
    ApprovalRequest,
    AuditKind,
    AuditRecord,
    FrozenCall,
    KeyRequest,
    Principal,
    Resource,
    Verdict,
)
from quell.server import serve
from tests import _authority as a
from tests._canaries import IN_SETTINGS, SEARCH
from tests.conftest import FakeClock

OWNER = Principal(user="owner", tenant="local", roles=("viewer", "operator", "approver", "admin"))
RUN = Principal(user="ana", roles=("operator",), agent="sre-bot", workflow="heal", workflow_digest="w1")
NOWHERE = "http://127.0.0.1:9"
KEYS = IdentitySettings(api_keys=True)


@dataclass(kw_only=True)
class House:
    """One running server."""

    app: App
    authority: Authority
    url: str
    clock: FakeClock
    http: httpx2.AsyncClient
    keys: dict[str, str] = field(default_factory=dict)

    def ask(
        self, number: int = 1, *, principal: Principal = RUN, quorum: int = 1, call: FrozenCall | None = None
    ) -> Approval:
        """Have a run ask people."""
        verdict: Verdict = replace(a.ASK, quorum=quorum)
        asked = a.asked(number, call=call or a.frozen(number))
        wish = ApprovalRequest(principal=principal, calls=(asked,), verdict=verdict, explanation="it is slow")
        with self.app.runs.database.writing(durability="written") as connection:
            return self.authority.guard.approvals.ask(connection, wish)

    def find(self, approval: Approval) -> Approval:
        with self.app.runs.database.reading() as connection:
            found = self.authority.guard.approvals.find(connection, approval.id, tenant=approval.terms.tenant)
        assert found is not None
        return found

    async def key(self, user: str, *roles: str, scopes: tuple[str, ...] = (), tenant: str = "local") -> dict[str, str]:
        """Give somebody an API key; return the headers that show it."""
        identities = await self.app.warden.identities()
        wish = KeyRequest(
            name=f"of {user}",
            user=user,
            tenant=tenant,
            roles=roles,
            scopes=scopes,
            expires_at=self.clock.at + timedelta(days=1),
        )
        by = replace(OWNER, tenant=tenant)
        with self.app.runs.database.writing(durability="written") as connection:
            _, secret = identities.new_key(connection, wish, by=by)
        return {"Authorization": f"Bearer {secret.reveal()}"}

    def records(self, *kinds: AuditKind) -> list[AuditRecord]:
        """Return what is on record."""
        self.authority.guard.audit.flush()
        return list(self.authority.guard.audit.records(kinds=kinds))

    def bodies(self, *kinds: AuditKind) -> list[dict[str, object]]:
        return [json.loads(record.body) for record in self.records(*kinds)]


def settings_of(
    state_dir: Path,
    *,
    identity: IdentitySettings | None = None,
    approvals: ApprovalSettings | None = None,
    server: ServerSettings | None = None,
    url: str = "",
) -> Settings:
    return Settings(
        state_dir=state_dir,
        store=StoreSettings(url=NOWHERE, query_timeout_s=0.5, password=Secret(IN_SETTINGS)),
        server=server or ServerSettings(port=0),
        identity=identity or IdentitySettings(),
        approvals=approvals or ApprovalSettings(),
        journal=JournalSettings(url=Secret(url)),
    )


@asynccontextmanager
async def a_house(settings: Settings, *, clock: FakeClock | None = None) -> AsyncIterator[House]:
    """Open an app, serve it, and stop it."""
    clock = clock or FakeClock()
    entropy = random.Random(7).randbytes
    urls: asyncio.Queue[str] = asyncio.Queue()
    async with open_app(settings, role="serve", clock=clock, entropy=entropy, env=dict(os.environ)) as app:
        serving = asyncio.create_task(serve(app, on_ready=urls.put_nowait))
        try:
            up = asyncio.create_task(urls.get())
            await asyncio.wait({up, serving}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                await serving
            url = up.result()
            local = url.replace("0.0.0.0", "127.0.0.1")
            hooks = {"response": [_answered]}
            async with httpx2.AsyncClient(base_url=local, timeout=10, trust_env=False, event_hooks=hooks) as http:
                authority = await app.open_authority()
                yield House(app=app, authority=authority, url=local, clock=clock, http=http)
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


async def _answered(response: httpx2.Response) -> None:
    """Look through an answer; one that never ends is read by who asked for it."""
    said = b"" if "event-stream" in response.headers.get("content-type", "") else await response.aread()
    SEARCH.text(f"the answer to {response.request.url.path}", str(response.headers).encode() + said)


def in_a_house(work: Callable[[House], Awaitable[None]], settings: Settings, *, clock: FakeClock | None = None) -> None:
    async def run() -> None:
        async with a_house(settings, clock=clock) as house:
            await work(house)

    asyncio.run(run())


async def until(condition: Callable[[], bool], *, timeout_s: float = 15.0) -> None:
    """Wait for something that a loop of the server does."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.02)


@dataclass(frozen=True, kw_only=True)
class Told:
    """One request as a service saw it."""

    headers: Mapping[str, str]
    body: bytes
    path: str


class Service:
    """Somebody else's HTTP service, which answers as it is told to."""

    def __init__(self, *, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.told: list[Told] = []
        self.answer: Callable[[Told], tuple[int, dict[str, str], bytes] | None] = lambda _told: (200, {}, b"ok")
        """None: never answers."""
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.url = f"{'https' if self._tls else 'http'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)
            }
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            told = Told(headers=headers, body=body, path=first.split(" ")[1])
            SEARCH.text("what a service was sent", f"{told.path} {told.headers}".encode() + body)
            self.told.append(told)
            said = self.answer(told)
            if said is None:
                await asyncio.sleep(60)
                return
            status, extra, content = said
            lines = [f"HTTP/1.1 {status} said", f"content-length: {len(content)}", "connection: close"]
            lines += [f"{name}: {value}" for name, value in extra.items()]
            writer.write("\r\n".join([*lines, "", ""]).encode() + content)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def frozen_with(number: int, *, arguments: str, name: str = "payments") -> FrozenCall:
    return replace(
        a.frozen(number, arguments=arguments),
        resource=Resource(kind="Service", name=name, environment="prod", units=6, host=""),
    )


def certificate(directory: Path, *hosts: str) -> tuple[Path, ssl.SSLContext]:
    """Make a certificate for this machine and `hosts`; return the file that says to trust it, and what serves with it."""
    names = [x509.DNSName(host) for host in hosts]
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test")])
    now = datetime.now(UTC)  # noqa: TID251 - the library of certificates asks no other clock
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1")), *names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, both = directory / "public.pem", directory / "both.pem"
    public.write_bytes(made.public_bytes(Encoding.PEM))
    both.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + public.read_bytes())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(both)
    return public, context
