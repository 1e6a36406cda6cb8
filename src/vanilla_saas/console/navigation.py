"""What rooms hand to the shell: their pages, their entries in the navigation, and who looks."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from fastapi import APIRouter

LeastRole = Literal["user", "admin", "superadmin"]
_RANK: dict[str, int] = {"user": 0, "service": 0, "admin": 1, "superadmin": 2}


@dataclass(frozen=True, slots=True)
class NavigationEntry:
    """A line of the side bar, shown from `least_role` upwards; `weight` orders lines and their groups.

    `count` is the path of a fragment that says how much waits there; pages ask for it after they are shown.
    """

    group: str
    title: str
    path: str
    icon: str
    weight: int
    least_role: LeastRole = "user"
    count: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """Pages of one room: `package` holds `templates/`, which are named `<name>/<file>`."""

    name: str
    package: str
    router: APIRouter
    navigation: tuple[NavigationEntry, ...] = ()


@dataclass(frozen=True, slots=True)
class Viewer:
    """The signed-in person, as the frame shows them. `opened` is set while a super admin is in a tenant."""

    name: str
    email: str
    role: str
    tenant: str
    tenant_name: str
    opened: bool = False
    restricted: bool = False
    """Nothing but a new password may be set."""


def groups_for(entries: Iterable[NavigationEntry], role: str) -> list[tuple[str, list[NavigationEntry]]]:
    """The entries that a role may follow, in groups, both in order of weight."""
    groups: dict[str, list[NavigationEntry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.weight):
        if _RANK[role] >= _RANK[entry.least_role]:
            groups.setdefault(entry.group, []).append(entry)
    return list(groups.items())
