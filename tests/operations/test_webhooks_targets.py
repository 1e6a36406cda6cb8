"""A tenant chooses where its webhooks go; none leads into our own network."""

import aiohttp
import pytest

from tests.operations.webhook_support import Receiver
from tests.rebinding import Rebinding, rebinding
from vanilla_saas.database.errors import VanillaError
from vanilla_saas.targets import check_url, connector, is_public

__all__ = ["rebinding"]

PRIVATE = [
    "127.0.0.1",
    "127.8.9.1",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",  # the metadata service of clouds
    "100.64.0.1",  # shared by carriers
    "192.0.2.1",
    "198.18.0.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fc00::1",
    "fd12:3456::1",
    "ff02::1",
    "2001:db8::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
    "2001:0:7f00:1::",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_of_our_own_network_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "64:ff9b::101:101"])
def test_an_address_of_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/hook",
        "https://localhost/",
        "https://localhost./",
        "https://db.localhost/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:169.254.169.254]/latest/meta-data",
        "https://user:password@example.com/",
        "https://user@example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https:///nowhere",
        "https://example.com:99999/",
        "https://exa mple.com/",
        "https://example.com/\r\nhost: other",
        "javascript:alert(1)",
        "hook",
        "",
    ],
)
def test_an_address_that_no_webhook_may_have_is_refused(url: str) -> None:
    with pytest.raises(VanillaError) as refusal:
        check_url(url, private=False)
    assert (refusal.value.name, refusal.value.detail) == ("invalid_request", {"param": "url"})


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://example.com/hook?a=1", "https://example.com/hook?a=1"),
        (" https://example.com ", "https://example.com"),
        ("https://example.com/hook#part", "https://example.com/hook"),
        ("https://1.1.1.1:8443/x", "https://1.1.1.1:8443/x"),
    ],
)
def test_an_address_on_the_internet_is_kept(url: str, kept: str) -> None:
    assert check_url(url, private=False) == kept


def test_for_development_loopback_and_http_are_allowed_but_still_no_password() -> None:
    assert check_url("http://127.0.0.1:8080/x", private=True) == "http://127.0.0.1:8080/x"
    with pytest.raises(VanillaError):
        check_url("http://user:password@127.0.0.1/", private=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::1]"])
async def test_no_spelling_of_loopback_is_connected_to(receiver: Receiver, host: str) -> None:
    port = receiver.url.partition("127.0.0.1:")[2].partition("/")[0]
    async with aiohttp.ClientSession(connector=connector(private=False)) as client:
        with pytest.raises(aiohttp.ClientError):
            await client.post(f"http://{host}:{port}/")
    assert receiver.requests == []
    async with (
        aiohttp.ClientSession(connector=connector(private=True)) as client,
        client.post(f"http://127.0.0.1:{port}/") as answer,
    ):
        assert answer.status == 200, "the receiver is there"


async def test_a_name_that_changes_its_mind_after_it_was_resolved_is_not_followed(
    receiver: Receiver, rebinding: Rebinding
) -> None:
    """What is checked is the address of the connection itself: there is no second look-up to answer otherwise."""
    async with aiohttp.ClientSession(connector=connector(private=False)) as client:
        for _ in range(2):
            with pytest.raises(aiohttp.ClientConnectorError):
                await client.post("http://rebinding.example/")
    assert rebinding.looked_up == ["rebinding.example"] * 2, "one look-up a request"
    assert rebinding.checked == ["1.1.1.1", "127.0.0.1"], "and what it said is what is checked"
    assert receiver.requests == []
