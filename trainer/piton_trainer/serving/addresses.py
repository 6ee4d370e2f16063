"""The addresses that a server listens on: those that `--host` names, and never more."""

import ipaddress
import socket

from piton.contract import InputError

_EVERYWHERE = "0.0.0.0 or ::"


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host.

    The resolver takes an empty text, 0 and 0x0 for all addresses of this machine. Only somebody who writes one of the
    two addresses that mean that is taken at their word.

    Raises:
        ValueError: there is none, or the host is another spelling for all addresses.
    """
    if not host.strip():
        raise InputError(f"--host: it is empty; name an address, such as 127.0.0.1, or {_EVERYWHERE} for all")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host: {host!r} is no address of this machine ({_reason(error)})") from error
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        parsed = ipaddress.ip_address(address)
        mapped = getattr(parsed, "ipv4_mapped", None) or parsed
        if mapped.is_unspecified and host not in ("0.0.0.0", "::"):  # noqa: S104 - they say what they mean
            raise InputError(f"--host: {host!r} means all addresses of this machine; write {_EVERYWHERE} for that")
        if host.rstrip(".").lower() == "localhost" and not mapped.is_loopback:
            raise InputError(f"--host: localhost is {address} here, which others can reach; write 127.0.0.1")
    return addresses


def as_url(address: str, port: int) -> str:
    """Return the URL of an address."""
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
