"""Which nodes come before which. Survives whatever it is given: cycles, missing nodes, loops of one."""

from collections.abc import Iterable, Mapping

MAX_NODES, MAX_CONNECTIONS = 1000, 5000


def ancestors(nodes: Iterable[str], connections: Iterable[tuple[str, str]]) -> Mapping[str, frozenset[str]]:
    """For each node all from which it can be reached; itself only when it is in a cycle."""
    names = list(dict.fromkeys(nodes))
    number = {name: n for n, name in enumerate(names)}
    after: list[list[int]] = [[] for _ in names]
    before: list[list[int]] = [[] for _ in names]
    for source, target in connections:
        if source in number and target in number:
            after[number[source]].append(number[target])
            before[number[target]].append(number[source])
    # sets as bits of integers; in topological order one round is enough, each cycle on the way costs another
    sets = [0] * len(names)
    order, changed = _order(after), True
    while changed:
        changed = False
        for n in order:
            found = sets[n]
            for earlier in before[n]:
                found |= sets[earlier] | 1 << earlier
            changed |= found != sets[n]
            sets[n] = found
    return {name: frozenset(_members(sets[n], names)) for n, name in enumerate(names)}


def _order(after: list[list[int]]) -> list[int]:
    """Reverse postorder of a depth-first search."""
    seen, done = [False] * len(after), list[int]()
    for start in range(len(after)):
        stack = [(start, 0)]
        while stack:
            node, at = stack.pop()
            if at == 0:
                if seen[node]:
                    continue
                seen[node] = True
            if at < len(after[node]):
                stack.append((node, at + 1))
                stack.append((after[node][at], 0))
            else:
                done.append(node)
    return done[::-1]


def _members(bits: int, names: list[str]) -> Iterable[str]:
    while bits:
        lowest = bits & -bits
        yield names[lowest.bit_length() - 1]
        bits ^= lowest
