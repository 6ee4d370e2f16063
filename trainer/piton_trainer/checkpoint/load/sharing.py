"""Who verifies which file: each is verified once, and the ranks have about as much to read as each other. Pure."""

from collections.abc import Collection, Mapping, Sequence


def share_out(sizes: Mapping[str, int], needs: Sequence[Mapping[str, int]]) -> list[set[str]]:
    """The files that each rank verifies.

    A rank that needs a file anyway reads little more to verify it; one that nobody needs is read for that alone.

    Args:
        sizes: of all files.
        needs: how many bytes of which files each rank reads for itself.
    """
    load = [sum(need.values()) for need in needs]
    shares: list[set[str]] = [set() for _ in needs]
    for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        among = [rank for rank, need in enumerate(needs) if name in need] or range(len(needs))
        rank = min(among, key=lambda rank: (load[rank], rank))
        shares[rank].add(name)
        load[rank] += size + size - needs[rank].get(name, 0)  # to hash, and to read besides what it reads anyway
    return shares


def read_by_neighbours(
    needs: Sequence[Mapping[str, int]], shares: Sequence[Collection[str]], rank: int, *, per_node: int
) -> set[str]:
    """The files that another rank on the same node reads as well, so that they should come from the disk only once.

    Args:
        needs: how many bytes of which files each rank reads for itself.
        shares: the files that each rank verifies.
        rank: of this process; those of one node follow each other, as torchrun numbers them.
        per_node: how many ranks a node has.
    """
    first = rank // per_node * per_node
    others = [other for other in range(first, min(first + per_node, len(needs))) if other != rank]
    return {name for other in others for name in {*needs[other], *shares[other]}}
