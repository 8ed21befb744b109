"""Keys that lie in files which only their owner can read."""

from __future__ import annotations

import os
from pathlib import Path

from quell.domain import ConfigError, Entropy

_KEY_BYTES = 32


def key_of(path: Path, *, entropy: Entropy, use: str) -> bytes:
    """Return the key of a file, made when it is missing. Raises ConfigError; `use` says what a lost one breaks."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            scratch = path.with_suffix(f".{entropy(6).hex()}")
            descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(entropy(_KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            # A link is made only where nothing is: of two processes at once, one key wins for both.
            try:
                os.link(scratch, path)
            except FileExistsError:
                pass
            finally:
                scratch.unlink()
        key = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the key {path} cannot be used: {error.strerror}", hint="check its owner and rights"
        ) from error
    if len(key) != _KEY_BYTES:
        raise ConfigError(f"the key {path} is damaged", hint=f"restore it from a backup; {use}")
    return key
