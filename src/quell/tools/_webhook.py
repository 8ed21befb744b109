"""Sending one message to somebody else's address, and taking a short answer: bounded in size and in time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass, field

import httpx2

from quell.domain import WorldError
from quell.tools._trust import trusted

_CONNECT_S = 5.0
_ANSWER_MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What was answered with success."""

    status: int
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    """As they came; what was sent twice stands here twice."""
    body: bytes


async def post_webhook(
    url: str, *, headers: Iterable[tuple[str, str]], body: bytes, timeout_s: float, to: str = ""
) -> Reply:
    """Post bytes as they are and return the answer; it is not sent again, and a redirect is not followed.

    `to` is the IP address to connect to; empty: the name is looked up. Who has judged what a name leads to gives it, as
    the next look could lead elsewhere; the certificate is held against the name all the same.

    Raises:
        WorldError: it cannot be reached, does not answer in time, answers at length, or with anything but success.
    """
    try:
        async with asyncio.timeout(timeout_s), _client(timeout_s) as client:
            return await _answered(client, _request(client, url, headers=list(headers), body=body, to=to))
    except (TimeoutError, httpx2.TimeoutException):
        raise WorldError(f"the webhook did not answer within {timeout_s:g} s", hint="is it reachable?") from None
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
        # The address of an incoming webhook is a secret in itself: it is not told.
        raise WorldError(
            f"the webhook cannot be reached: {type(error).__name__}", hint="check its address and certificate"
        ) from None


def _client(timeout_s: float) -> httpx2.AsyncClient:
    bounds = httpx2.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s))
    return httpx2.AsyncClient(timeout=bounds, follow_redirects=False, trust_env=False, verify=trusted())


def _request(
    client: httpx2.AsyncClient, url: str, *, headers: list[tuple[str, str]], body: bytes, to: str
) -> httpx2.Request:
    named = httpx2.URL(url)
    if not to:
        return client.build_request("POST", named, headers=headers, content=body)
    return client.build_request(
        "POST",
        named.copy_with(host=to),
        headers=[*headers, ("Host", named.netloc.decode("ascii"))],
        content=body,
        extensions={"sni_hostname": named.raw_host.decode("ascii")},
    )


async def _answered(client: httpx2.AsyncClient, request: httpx2.Request) -> Reply:
    async with aclosing(await client.send(request, stream=True)) as response:
        if not response.is_success:
            raise WorldError(f"the webhook answered {response.status_code}", hint="its own log says why")
        pieces: list[bytes] = []
        size_bytes = 0
        async for piece in response.aiter_bytes():
            size_bytes += len(piece)
            if size_bytes > _ANSWER_MAX_BYTES:
                raise WorldError("the answer of the webhook is too long", hint=f"{_ANSWER_MAX_BYTES} bytes at most")
            pieces.append(piece)
        told = tuple(response.headers.multi_items())
    return Reply(status=response.status_code, headers=told, body=b"".join(pieces))
