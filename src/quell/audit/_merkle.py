"""The Merkle tree of RFC 6962 (section 2.1): a frontier that grows per record, and proofs on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

HASH_BYTES = 32
_LEAF = b"\x00"
_NODE = b"\x01"
_CHAIN = b"\x02"
GENESIS = "0" * (2 * HASH_BYTES)
"""What stands before the first record."""


def leaf_hash(leaf: bytes) -> bytes:
    """Hash a record (RFC 6962, section 2.1)."""
    return hashlib.sha256(_LEAF + leaf).digest()


def chain_hash(previous: str, leaf: bytes) -> str:
    """Bind a leaf hash to everything before it."""
    return hashlib.sha256(_CHAIN + bytes.fromhex(previous) + leaf).hexdigest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(_NODE + left + right).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Frontier:
    """The roots of the full subtrees of a tree, largest first: all that appending and the root need."""

    size: int = 0
    roots: tuple[bytes, ...] = ()

    def append(self, leaf: bytes) -> Frontier:
        """Return the frontier with one more leaf hash."""
        roots = list(self.roots)
        carry, size = leaf, self.size
        while size & 1:
            carry = _node(roots.pop(), carry)
            size >>= 1
        return Frontier(size=self.size + 1, roots=(*roots, carry))

    @property
    def root(self) -> bytes:
        """Root hash of the tree; that of an empty tree is the hash of nothing."""
        if not self.roots:
            return hashlib.sha256().digest()
        folded = self.roots[-1]
        for left in reversed(self.roots[:-1]):
            folded = _node(left, folded)
        return folded

    def to_text(self) -> str:
        """Write the roots in hex, one after the other."""
        return b"".join(self.roots).hex()

    @classmethod
    def from_text(cls, text: str, *, size: int) -> Frontier:
        """Read back what `to_text` wrote. Raises ValueError when it does not fit the size."""
        raw = bytes.fromhex(text)
        if size < 0 or len(raw) != HASH_BYTES * size.bit_count():
            raise ValueError(f"{len(raw)} bytes are no frontier of {size} records")
        roots = tuple(raw[at : at + HASH_BYTES] for at in range(0, len(raw), HASH_BYTES))
        return cls(size=size, roots=roots)


class Tree:
    """All nodes of a tree in memory, for proofs."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        # An odd node is carried up unchanged: that gives the tree of RFC 6962.
        self._levels = [list(leaves)]
        while len(self._levels[-1]) > 1:
            below = self._levels[-1]
            above = [_node(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)]
            self._levels.append(above + below[len(below) & ~1 :])

    def inclusion(self, index: int) -> list[bytes]:
        """Return the path from a leaf (from 0) to the root (RFC 6962, section 2.1.1)."""
        assert 0 <= index < len(self._levels[0]), f"no leaf {index}"
        path = []
        for level in self._levels[:-1]:
            sibling = index ^ 1
            if sibling < len(level):
                path.append(level[sibling])
            index >>= 1
        return path

    def consistency(self, first: int) -> list[bytes]:
        """Return the proof that the first `first` leaves are the start of this tree (RFC 6962, section 2.1.2)."""
        size = len(self._levels[0])
        assert 0 < first <= size, f"no tree of {first} in one of {size}"
        proof: list[bytes] = []
        low, high, is_whole = 0, size, True
        while first != high:
            middle = low + _split(high - low)
            if first <= middle:
                proof.append(self._root_of(middle, high))
                high = middle
            else:
                proof.append(self._root_of(low, middle))
                low, is_whole = middle, False
        if not is_whole:
            proof.append(self._root_of(low, high))
        return proof[::-1]

    def _root_of(self, low: int, high: int) -> bytes:
        count = high - low
        level = count.bit_length() - 1
        if count == 1 << level and low % count == 0:
            return self._levels[level][low >> level]
        middle = low + _split(count)
        return _node(self._root_of(low, middle), self._root_of(middle, high))


def _split(count: int) -> int:
    """Return the largest power of two below a count."""
    return 1 << ((count - 1).bit_length() - 1)


def is_included(leaf: bytes, *, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Check an inclusion proof (RFC 9162, section 2.1.3.2)."""
    if not 0 <= index < size:
        return False
    first, last, folded = index, size - 1, leaf
    for step in path:
        if last == 0:
            return False
        if first & 1 or first == last:
            folded = _node(step, folded)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            folded = _node(folded, step)
        first, last = first >> 1, last >> 1
    return last == 0 and folded == root


def is_consistent(*, first: int, first_root: bytes, second: int, second_root: bytes, proof: Sequence[bytes]) -> bool:
    """Check a consistency proof (RFC 9162, section 2.1.4.2)."""
    if first == second:
        return not proof and first_root == second_root
    if not 0 < first < second or not proof:
        return False
    steps = [first_root, *proof] if first & (first - 1) == 0 else list(proof)
    low, high = first - 1, second - 1
    while low & 1:
        low, high = low >> 1, high >> 1
    old = new = steps[0]
    for step in steps[1:]:
        if high == 0:
            return False
        if low & 1 or low == high:
            old, new = _node(step, old), _node(step, new)
            while not low & 1 and low:
                low, high = low >> 1, high >> 1
        else:
            new = _node(new, step)
        low, high = low >> 1, high >> 1
    return high == 0 and old == first_root and new == second_root
