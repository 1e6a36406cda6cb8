"""Connections to addresses that tenants choose, which must not lead into our own network.

The address is checked where the socket for it is made, after the name was resolved: there is no moment in between in
which a name can come to mean another address.
"""

import errno
import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

from aiohttp import DummyCookieJar, TCPConnector

_NAT64 = IPv6Network("64:ff9b::/96")
REFUSED = "The address {} is not a public one."


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet, as are the IPv4 addresses that an IPv6 one stands for."""
    # a link-local address may carry the interface
    found = ip_address(address.partition("%")[0])
    return all(one.is_global and not one.is_multicast for one in (found, *_inside(found)))


def _inside(address: IPv4Address | IPv6Address) -> list[IPv4Address]:
    if isinstance(address, IPv4Address):
        return []
    inside = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if address in _NAT64:
        inside.append(IPv4Address(int(address) & 0xFFFFFFFF))
    return [one for one in inside if one is not None]


def connector(*, private: bool) -> TCPConnector:
    """Connections to public addresses only, unless `private`; none is used twice."""
    return TCPConnector(
        limit=0, force_close=True, use_dns_cache=False, socket_factory=None if private else _public_socket
    )


def _public_socket(address: tuple[Any, ...]) -> socket.socket:
    family, kind, protocol, _, (host, *_) = address
    if not is_public(host):
        raise OSError(errno.EACCES, REFUSED.format(host))
    return socket.socket(family, kind, protocol)


def no_cookies() -> DummyCookieJar:
    """Servers of all tenants share the client: none of them may leave anything in it."""
    return DummyCookieJar()
