"""Quell: a harness for production agents. The root is lazy: importing it runs nothing."""

__version__ = "0.1.0"

_DOOR = {"App": "quell.app", "Settings": "quell.config", "Incident": "quell.domain"}


def __getattr__(name: str) -> object:
    """Load the public names on first use (PEP 562)."""
    if name not in _DOOR:
        raise AttributeError(f"module 'quell' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415 - keeps `import quell` free of everything

    return getattr(import_module(_DOOR[name]), name)
