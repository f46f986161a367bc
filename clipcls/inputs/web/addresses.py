"""Look up the IP addresses of a name, and tell which are on the public web."""

import socket
import threading
from concurrent.futures import Future
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

IP = IPv4Address | IPv6Address

# special addresses that the standard library takes for global, or did in older versions
_SPECIAL = (
    IPv4Network("168.63.129.16/32"),  # inside Azure, the host of a virtual machine
    IPv4Network("192.0.0.0/24"),
    IPv4Network("192.88.99.0/24"),
    IPv6Network("2001:db8::/32"),
    IPv6Network("3fff::/20"),
)
_UNICAST = IPv6Network("2000::/3")
# IPv4 addresses within IPv6: translated by a gateway
_NAT64 = IPv6Network("64:ff9b::/96")


def is_public(address: IP) -> bool:
    """Tell whether an address is an ordinary one of the public internet.

    Addresses of this machine, of private, local and provider networks, multicast, reserved and documentation addresses
    aren't, nor are IPv6 addresses that lead to such an IPv4 address.

    Source: the IANA registries of special-purpose addresses, RFC 6890.
    """
    if isinstance(address, IPv6Address):
        inner = _embedded(address)
        if inner is not None:
            return is_public(inner)
        if address not in _UNICAST:
            return False
    special = any(address in network for network in _SPECIAL)
    return address.is_global and not address.is_multicast and not special


def _embedded(address: IPv6Address) -> IPv4Address | None:
    """Return the IPv4 address that an IPv6 one stands for, if any."""
    if address in _NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour


def look_up(host: str, port: int, seconds: float) -> list[IP]:
    """Look up a name's addresses, in the order in which to try them.

    Args:
        host: a name, or an address in any notation the system knows, such as `127.1` and `0x7f000001`.
        seconds: how long the look-up may take.

    Raises:
        TimeoutError: it took longer.
        OSError: the name leads nowhere.
    """
    answer: Future[list[IP]] = Future()

    def ask() -> None:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            texts = dict.fromkeys(str(place[0]).partition("%")[0] for *_, place in found)
            answer.set_result([ip_address(text) for text in texts])
        except (OSError, ValueError) as exc:
            answer.set_exception(exc if isinstance(exc, OSError) else OSError(str(exc)))

    # the system's resolver has its own time limit, and can't be interrupted
    threading.Thread(target=ask, name="lookup", daemon=True).start()
    return answer.result(seconds)
