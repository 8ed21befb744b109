"""Telling people outside of requests that wait for them: an approver's service that may answer, and a chat that may not.

A request is claimed in the database before it is sent, so that several servers tell it once; one that died while it sent
loses its claim. Whatever goes wrong out there approves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Literal, TypeAlias

from quell import telemetry
from quell.app._agent_routes import AgentRoute
from quell.app._authority import Authority
from quell.app._votes import masked, vote
from quell.config import ApprovalSettings, Secret
from quell.domain import (
    Approval,
    ApprovalStatus,
    Asker,
    AuditKind,
    Clock,
    Entropy,
    Principal,
    QuellError,
    RefusedError,
    UsageError,
    WorldError,
    new_id,
)
from quell.governance import Approvals
from quell.tools import post_webhook

Channel: TypeAlias = Literal["webhook", "chat"]
AskerOf: TypeAlias = Callable[[str, str], Awaitable[Asker]]
"""Tells who asks, by run and call."""

_SENT_AT_ONCE = 16
_LEASE_MARGIN_S = 30.0
_CHAT_TIMEOUT_S = 10.0
_ACCEPTED = 202
_UNEXPLAINED = "the approver's service gave no reason"
_NOWHERE = "https://nowhere.invalid/"
"""Stands for the address of a service that only posts decisions: nothing is ever sent there (RFC 2606)."""


class Herald:
    """Sends what waits and takes the answers. Raises ConfigError with every mistake of its settings."""

    def __init__(
        self,
        authority: Authority,
        *,
        clock: Clock,
        entropy: Entropy,
        link_of: Callable[[str], str],
        routes: Mapping[str, AgentRoute] | None = None,
        headers_of: Callable[[str], Mapping[str, str]] = lambda _run: {},
        asker: AskerOf | None = None,
    ) -> None:
        """Take what it needs; `link_of` says where people read an approval.

        `routes` are those of agents whose file names a service of its own, by id; `headers_of` gives the headers of
        whoever started a run, while this process knows them; `asker` who in it asks.
        """
        settings = authority.settings.approvals
        self._authority = authority
        self._settings = settings
        self._clock = clock
        self._entropy = entropy
        self._link_of = link_of
        self._sending: set[asyncio.Task[None]] = set()
        self._headers_of = headers_of
        self._asker = asker
        self._routes = {agent: (route, _service(route.approvals)) for agent, route in (routes or {}).items()}
        self._route = AgentRoute(approvals=settings)
        self.service = _service(settings)
        """What the approver's service is sent, and what its answers are worth."""
        slack_url = settings.slack_url.reveal()
        self._chat = Approvals.webhook(slack_url, secret=Secret("")) if slack_url else None

    def channels(self, agent: str = "") -> Mapping[Channel, float]:
        """Return what is told of requests of an agent, with the time that it may take in seconds."""
        found: dict[Channel, float] = {}
        settings = self._of(agent)[0].approvals
        if settings.webhook_url:
            found["webhook"] = settings.timeout_s
        if self._chat is not None:
            found["chat"] = _CHAT_TIMEOUT_S
        return found

    def _of(self, agent: str) -> tuple[AgentRoute, Approvals.webhook]:
        return self._routes.get(agent, (self._route, self.service))

    def voter(self, *, tenant: str) -> Principal:
        """Return as whom the approver's service answers."""
        return Principal(user=self._settings.webhook_user, tenant=tenant, roles=self._settings.webhook_roles)

    async def look(self) -> None:
        """Begin to tell what waits and was not told yet."""
        room = _SENT_AT_ONCE - len(self._sending)
        if room <= 0 or not (self.channels() or self._routes):
            return
        for approval, channel in await asyncio.to_thread(self._claim, room):
            task = asyncio.create_task(self._tell(approval, channel))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    async def close(self) -> None:
        """Give up what is being sent; its claim runs out, and it is sent again."""
        for task in tuple(self._sending):
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)

    def _claim(self, items_max: int) -> list[tuple[Approval, Channel]]:
        approvals, database = self._authority.guard.approvals, self._authority.runs.database
        due: list[tuple[Approval, Channel]] = []
        with database.reading() as connection:
            for tenant in self._authority.settings.identity.tenants:
                for approval in approvals.listed(connection, tenant=tenant, status=ApprovalStatus.REQUESTED):
                    due += [
                        (approval, channel)
                        for channel, takes_s in self.channels(approval.terms.agent).items()
                        if approvals.notices.is_due(connection, approval.id, channel=channel, lease_s=_lease_s(takes_s))
                    ]
        if not due:
            return []
        # The oldest first: they have the least time left.
        with database.writing() as connection:
            return [
                (approval, channel)
                for approval, channel in sorted(due, key=lambda one: one[0].id)[:items_max]
                if approvals.notices.claim(
                    connection,
                    approval.id,
                    channel=channel,
                    lease_s=_lease_s(self.channels(approval.terms.agent)[channel]),
                )
            ]

    async def _tell(self, approval: Approval, channel: Channel) -> None:
        """Tell one request over one channel; what went wrong is on record, and what may be tried again is."""
        try:
            if channel == "chat":
                await self._show(approval)
            else:
                await self._ask(approval)
        except WorldError as error:
            self._failed(approval, channel, error)
            return
        except (RefusedError, UsageError) as error:
            # Somebody else decided meanwhile, or the answer is worth nothing: either way it is not asked again.
            self._failed(approval, channel, error)
        except Exception as error:  # noqa: BLE001 - one request that cannot be told must not end the telling
            self._failed(approval, channel, error)
            return
        await asyncio.to_thread(self._settle, approval, channel)

    async def _show(self, approval: Approval) -> None:
        assert self._chat is not None, "only claimed with a chat"
        shown = masked(approval, self._authority.redactor)
        message = self._chat.slack(shown, link=self._link_of(approval.id), at=self._clock())
        await post_webhook(message.url, headers=message.headers, body=message.body, timeout_s=_CHAT_TIMEOUT_S)

    async def _ask(self, approval: Approval) -> None:
        shown = masked(approval, self._authority.redactor)
        at = self._clock()
        route, service = self._of(approval.terms.agent)
        came = {header.lower(): value for header, value in self._headers_of(approval.terms.run).items()}
        forwarded = {
            out: came[source.lower()] for out, source in route.headers_from_request.items() if source.lower() in came
        }
        request_id = new_id("req", at=at, entropy=self._entropy(10))
        call = approval.terms.calls[0].call.id
        asker = None if self._asker is None else await self._asker(approval.terms.run, call)
        message = service.request(shown, request_id=request_id, at=at, asker=asker, forwarded=forwarded)
        reply = await post_webhook(
            message.url, headers=message.headers, body=message.body, timeout_s=route.approvals.timeout_s
        )
        if reply.status == _ACCEPTED and not reply.body.strip():
            return  # It will post its decision.
        try:
            answer = service.answer(reply.body, headers=reply.headers, approval=approval.id, at=self._clock())
        except RefusedError as error:
            await asyncio.to_thread(self._refuse, approval, error)
            raise
        await asyncio.to_thread(
            vote,
            self._authority,
            approval.id,
            by=self.voter(tenant=approval.terms.tenant),
            verdict="approve" if answer.approved else "reject",
            digest_seen=approval.digest,
            reason=answer.reason or ("" if answer.approved else _UNEXPLAINED),
            way="webhook",
            signature=answer.signature,
        )
        with suppress(QuellError):
            # Who waits looks by itself too, only later.
            await self._authority.runs.wake(approval.terms.run)

    def _refuse(self, approval: Approval, error: RefusedError) -> None:
        """Keep the account of an answer that is worth nothing: somebody may be trying."""
        audit = self._authority.guard.audit
        body = {"approval": approval.id, "way": "webhook", "code": error.code, "refused": str(error)}
        audit.note(
            audit.entry(AuditKind.REFUSAL, run=approval.terms.run, principal=self._settings.webhook_user, body=body)
        )

    def _failed(self, approval: Approval, channel: Channel, error: Exception) -> None:
        said = str(error) if isinstance(error, QuellError) else f"{type(error).__name__}: {error}"
        telemetry.event("approval.notice_failed", approval=approval.id, channel=channel, error=said)

    def _settle(self, approval: Approval, channel: Channel) -> None:
        told = {"approval": approval.id, "digest": approval.digest, "told": channel}
        audit = self._authority.guard.audit
        entry = audit.entry(AuditKind.APPROVAL, run=approval.terms.run, principal="", body=told)
        with self._authority.runs.database.writing(durability="written") as connection:
            self._authority.guard.approvals.notices.settle(connection, approval.id, channel=channel)
            audit.append(connection, entry)


def _service(settings: ApprovalSettings) -> Approvals.webhook:
    return Approvals.webhook(
        settings.webhook_url or _NOWHERE,
        secret=settings.webhook_secret,
        secondary=settings.webhook_secondary,
        tolerance_s=settings.tolerance_s,
        headers={name: value.reveal() for name, value in settings.webhook_headers.items()},
    )


def _lease_s(takes_s: float) -> float:
    return takes_s + _LEASE_MARGIN_S
