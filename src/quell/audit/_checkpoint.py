"""Signed checkpoints: the C2SP signed-note and tlog-checkpoint formats, with an Ed25519 key outside the database."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from quell.domain import AuditCheckpoint, ConfigError, Entropy, UsageError

KEY_NAME = "quell-audit"
KEY_FILE = "audit.key"
PUBLIC_FILE = "audit.pub"
_ED25519 = b"\x01"
_SEED_BYTES = 32
_ID_BYTES = 4
_SIGNED = "\u2014 "
_EXTENSION = "chain "
_PUBLIC_HINT = "expected NAME+ID+BASE64, as the audit log prints it"


class Signer:
    """The private key of a log, in the format of golang.org/x/mod/sumdb/note."""

    def __init__(self, name: str, seed: bytes) -> None:
        # Loaded here: reading and verifying decide without it, and so does whoever only records.
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey  # noqa: PLC0415

        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        public = self._key.public_key().public_bytes_raw()
        self._name = name
        self._id = _key_id(name, public)
        self.public_key = f"{name}+{self._id.hex()}+{base64.b64encode(_ED25519 + public).decode()}"
        """What a verifier needs: name, key id and public key."""

    def sign(self, *, origin: str, size: int, root: bytes, chain: str) -> AuditCheckpoint:
        """Sign the log at one size."""
        text = f"{origin}\n{size}\n{base64.b64encode(root).decode()}\n{_EXTENSION}{chain}\n"
        signature = base64.b64encode(self._id + self._key.sign(text.encode())).decode()
        note = f"{text}\n{_SIGNED}{self._name} {signature}\n"
        return AuditCheckpoint(origin=origin, size=size, root=root.hex(), chain=chain, note=note)


class Verifier:
    """Public keys that are trusted."""

    def __init__(self, public_keys: Sequence[str]) -> None:
        """Take keys as `Signer.public_key` writes them. Raises UsageError for one that cannot be read."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415 - as above

        self._keys: dict[tuple[str, bytes], Ed25519PublicKey] = {}
        for line in public_keys:
            try:
                name, id_, text = line.strip().split("+", 2)
                raw = base64.b64decode(text, validate=True)
                key = Ed25519PublicKey.from_public_bytes(raw[1:])
            except ValueError as error:
                raise UsageError(f"not a public key: {line[:80]!r}", hint=_PUBLIC_HINT) from error
            if raw[:1] != _ED25519 or _key_id(name, raw[1:]).hex() != id_:
                raise UsageError(f"a public key that does not fit its id: {line[:80]!r}", hint=_PUBLIC_HINT)
            self._keys[name, bytes.fromhex(id_)] = key

    def is_signed(self, note: str) -> bool:
        """Tell whether one of the trusted keys signed the note."""
        from cryptography.exceptions import InvalidSignature  # noqa: PLC0415 - as above

        text, separator, signatures = note.rpartition("\n\n")
        lines = signatures.split("\n")
        if not separator or lines.pop() or not all(line.startswith(_SIGNED) for line in lines):
            return False
        for line in lines:
            name, _, encoded = line.removeprefix(_SIGNED).partition(" ")
            with suppress(InvalidSignature, ValueError):
                raw = base64.b64decode(encoded, validate=True)
                key = self._keys.get((name, raw[:_ID_BYTES]))
                if key is not None:
                    key.verify(raw[_ID_BYTES:], f"{text}\n".encode())
                    return True
        return False


def read_note(note: str) -> AuditCheckpoint:
    """Read a checkpoint without judging its signature. Raises ValueError when it is none."""
    lines = note.partition("\n\n")[0].split("\n")
    if len(lines) != 4 or not lines[3].startswith(_EXTENSION) or not lines[1].isascii() or not lines[1].isdigit():
        raise ValueError("not a checkpoint of an audit log")
    try:
        root = base64.b64decode(lines[2], validate=True)
    except binascii.Error as error:
        raise ValueError("the root is no base64") from error
    chain = lines[3].removeprefix(_EXTENSION)
    return AuditCheckpoint(origin=lines[0], size=int(lines[1]), root=root.hex(), chain=chain, note=note)


def make_signer(directory: Path, *, entropy: Entropy) -> Signer:
    """Read the key of this machine, making it at first use: readable by its owner only, whole or not at all.

    Raises:
        ConfigError: the key file cannot be read, written or understood.
    """
    path = directory / KEY_FILE
    try:
        if not path.exists():
            _write_new(path, entropy)
        text = path.read_text()
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(
            f"cannot use the audit key {path}: {error.strerror}", hint="check the owner and the rights of the directory"
        ) from error
    if mode & 0o077:
        raise ConfigError(f"others may read the audit key {path}", hint="chmod 600 it, and consider making a new one")
    try:
        _, _, name, id_, encoded = text.strip().split("+", 4)
        seed = base64.b64decode(encoded, validate=True)
        signer = Signer(name, seed[1:])
        assert signer.public_key.split("+")[1] == id_, "the key does not fit its id"
    except (ValueError, AssertionError) as error:
        raise ConfigError(
            f"the audit key {path} cannot be understood",
            hint="restore it from a backup; or move it away: a new one is made, and its public key is added",
        ) from error
    _remember(directory / PUBLIC_FILE, signer.public_key)
    return signer


def public_keys(directory: Path) -> tuple[str, ...]:
    """Return the public keys that this machine signs or signed with, the newest last."""
    try:
        return tuple(line for line in (directory / PUBLIC_FILE).read_text().splitlines() if line)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ConfigError(f"cannot read {directory / PUBLIC_FILE}: {error.strerror}") from error


def write_flushed(path: Path, content: bytes, *, mode: int) -> None:
    """Write a file and have it on the disk."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_directory(directory: Path) -> None:
    """Have the names of a directory on the disk."""
    fd = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _write_new(path: Path, entropy: Entropy) -> None:
    seed = entropy(_SEED_BYTES)
    id_ = Signer(KEY_NAME, seed).public_key.split("+")[1]
    text = f"PRIVATE+KEY+{KEY_NAME}+{id_}+{base64.b64encode(_ED25519 + seed).decode()}\n"
    own = path.with_name(f".{path.name}.{entropy(8).hex()}")
    try:
        write_flushed(own, text.encode(), mode=0o600)
        # A link is made once: of two that come at the same time, both then read the first one's key.
        with suppress(FileExistsError):
            os.link(own, path)
        flush_directory(path.parent)
    finally:
        own.unlink(missing_ok=True)


def _remember(path: Path, public_key: str) -> None:
    known = public_keys(path.parent)
    if public_key not in known:
        own = path.with_name(f".{path.name}.{os.getpid()}")
        write_flushed(own, "".join(f"{line}\n" for line in (*known, public_key)).encode(), mode=0o644)
        own.replace(path)


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:_ID_BYTES]
