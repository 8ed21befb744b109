"""The tree of the audit log is that of RFC 6962, and its proofs prove nothing else."""

from __future__ import annotations

import hashlib

from quell.audit._merkle import Frontier, Tree, is_consistent, is_included, leaf_hash

LEAVES = [leaf_hash(bytes([number])) for number in range(33)]


def defined(leaves: list[bytes]) -> bytes:
    """Hash a list of leaves as section 2.1 of the RFC defines it."""
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return leaves[0]
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    return hashlib.sha256(b"\x01" + defined(leaves[:split]) + defined(leaves[split:])).digest()


def test_the_frontier_has_the_root_that_the_rfc_defines_at_every_size() -> None:
    frontier = Frontier()
    assert frontier.root == defined([])
    for size, leaf in enumerate(LEAVES, start=1):
        frontier = frontier.append(leaf)
        assert frontier.root == defined(LEAVES[:size])
        assert Frontier.from_text(frontier.to_text(), size=size) == frontier


def test_a_leaf_is_proven_at_its_place_in_its_tree_and_nowhere_else() -> None:
    for size in range(1, 34):
        tree, root = Tree(LEAVES[:size]), defined(LEAVES[:size])
        for index in range(size):
            path = tree.inclusion(index)
            assert is_included(LEAVES[index], index=index, size=size, path=path, root=root)
            assert not is_included(LEAVES[(index + 1) % 33], index=index, size=size, path=path, root=root)
            wrong = [other for other in range(-1, size + 1) if other != index]
            assert not any(is_included(LEAVES[index], index=at, size=size, path=path, root=root) for at in wrong)
            assert not is_included(LEAVES[index], index=index, size=size, path=[*path, root], root=root)


def test_a_tree_is_proven_to_continue_another_and_only_that() -> None:
    for second in range(1, 34):
        tree, root = Tree(LEAVES[:second]), defined(LEAVES[:second])
        for first in range(1, second + 1):
            proof = tree.consistency(first)
            for claimed in range(1, second + 1):
                holds = is_consistent(
                    first=claimed, first_root=defined(LEAVES[:claimed]), second=second, second_root=root, proof=proof
                )
                assert holds == (claimed == first), (first, claimed, second)
