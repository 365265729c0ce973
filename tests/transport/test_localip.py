"""The choice of the address that launchers are told."""

from __future__ import annotations

import ipaddress

import pytest

from enterprise_gateway.core.errors import InvalidRequestError
from enterprise_gateway.transport.localip import local_ips, response_ip


def test_configured_address_is_taken():
    """What the operator set is used as it is, be it prohibited or another host's."""
    assert response_ip("203.0.113.9", ["203.*"]) == "203.0.113.9"


def test_no_pattern_prohibits_nothing():
    """An empty list, and empty entries, prohibit no address: the first one is chosen."""
    assert response_ip() == response_ip(prohibited=["", " "]) == local_ips()[0]


def test_prohibited_addresses_are_skipped():
    """Patterns match from the start of an address, as regular expressions; the next address is taken."""
    first, *others = local_ips()
    if others:
        assert response_ip(prohibited=[first.replace(".", r"\.")]) == others[0]
    assert response_ip(prohibited=[first[1:] + "$"]) == first
    assert response_ip(prohibited=[r"(?!127\.)"]) == "127.0.0.1"


def test_nothing_left_is_an_error():
    """When every address is prohibited, or a pattern is none, the error names the variable."""
    for pattern in (".*", "("):
        with pytest.raises(InvalidRequestError, match="EG_PROHIBITED_LOCAL_IPS"):
            response_ip(prohibited=[pattern])


def test_local_addresses_are_this_hosts():
    """Addresses are listed once, loopback last, without link-local ones."""
    addresses = local_ips()
    assert addresses[-1] == "127.0.0.1"
    assert len(set(addresses)) == len(addresses)
    assert not any(ipaddress.ip_address(address).is_link_local for address in addresses)
