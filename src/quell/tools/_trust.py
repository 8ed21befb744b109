"""Which certificates are trusted: those of this machine, or of SSL_CERT_FILE where it names some."""

from __future__ import annotations

import ssl
from functools import cache

import httpx2


@cache
def trusted() -> ssl.SSLContext:
    """Load the certificates that are trusted, once: it takes longer than all the rest of a connection."""
    return httpx2.create_ssl_context()
