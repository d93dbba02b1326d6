"""Servers that speak TLS, with certificates of our own as good and as bad as a test wants them."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trustme


def server_context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    """Have a server show this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # Its type names pyOpenSSL as well, which is not installed.
    certificate.configure_cert(context)  # pyright: ignore[reportUnknownMemberType]
    return context
