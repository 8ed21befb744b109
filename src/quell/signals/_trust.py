"""What is trusted where something listens: this machine's certificates, or SSL_CERT_FILE's; nothing in the clear needs any."""

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
    return httpx2.create_ssl_context()


@cache
def _nothing() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
