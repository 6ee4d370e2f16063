"""Assignment of files to ranks for verification: each file once, with about equal load on the ranks. Pure."""

from collections.abc import Collection, Mapping, Sequence


def share_out(sizes: Mapping[str, int], needs: Sequence[Mapping[str, int]]) -> list[set[str]]:
    """Return the files that each rank verifies.

    A rank that needs a file anyway reads little more to verify it; a file that no rank needs is read only for that.

    Args:
        sizes: the sizes of all files, in bytes.
        needs: the bytes of each file that each rank reads for itself.
    """
    load = [sum(need.values()) for need in needs]
    shares: list[set[str]] = [set() for _ in needs]
    for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        among = [rank for rank, need in enumerate(needs) if name in need] or range(len(needs))
        rank = min(among, key=lambda rank: (load[rank], rank))
        shares[rank].add(name)
        load[rank] += size + size - needs[rank].get(name, 0)  # bytes to hash, plus bytes to read in addition to its own
    return shares


def read_by_neighbours(
    needs: Sequence[Mapping[str, int]], shares: Sequence[Collection[str]], rank: int, *, per_node: int
) -> set[str]:
    """Return the files that another rank on the same node reads too, so that the disk should read them only once.

    Args:
        needs: the bytes of each file that each rank reads for itself.
        shares: the files that each rank verifies.
        rank: the rank of this process; ranks of one node are consecutive, as torchrun numbers them.
        per_node: the number of ranks per node.
    """
    first = rank // per_node * per_node
    others = [other for other in range(first, min(first + per_node, len(needs))) if other != rank]
    return {name for other in others for name in {*needs[other], *shares[other]}}
