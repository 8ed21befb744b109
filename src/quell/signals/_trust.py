"""What is trusted where something listens: the certificates of this machine, which nothing in the clear has a use for."""

from __future__ import annotations

import ssl
from functools import cache

import httpx2


def trusted(url: str) -> ssl.SSLContext:
    """Return what a client of this address trusts; one in the clear trusts nothing, as its client would never ask."""
    return _certificates() if url.lower().startswith("https:") else _nothing()


@cache
def _certificates() -> ssl.SSLContext:
    """Load them once: it takes a tenth of a second, in which nothing else goes on."""
    return httpx2.create_ssl_context(trust_env=False)


@cache
def _nothing() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
