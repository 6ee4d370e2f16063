"""Who verifies which file: each is verified once, and the ranks have about as much to read as each other. Pure."""

from collections.abc import Mapping, Sequence


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
