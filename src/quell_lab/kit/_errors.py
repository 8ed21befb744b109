"""What a handler of the shop may raise."""

from __future__ import annotations


class ShopError(Exception):
    """Base of what the shop raises on purpose; becomes an HTTP answer."""

    status = 500
    kind = "internal"


class RefusedError(ShopError):
    """The caller asked for something that cannot be had."""

    kind = "refused"

    def __init__(self, message: str, *, status: int = 422) -> None:
        super().__init__(message)
        self.status = status


class UnavailableError(ShopError):
    """Something this service needs did not answer as it should."""

    def __init__(self, message: str, *, kind: str, status: int = 503) -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
