"""Whether the Hugging Face hub can be reached, asked once and briefly: no network fails fast."""

from __future__ import annotations

import os
import socket
from functools import cache
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

ENDPOINT = "https://huggingface.co"


def forced_offline() -> bool:
    """Whether the user forbade the network (HF_HUB_OFFLINE)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


@cache
def hub_reachable(seconds: float = 3.0) -> bool:
    """Whether a connection to the hub (or its proxy) opens within `seconds`; never raises."""
    if forced_offline():
        return False
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT", ENDPOINT))
    host = endpoint.hostname or ""
    proxy = getproxies().get(endpoint.scheme)
    if proxy and not proxy_bypass(host):
        endpoint = urlsplit(proxy if "//" in proxy else f"//{proxy}", scheme="http")
        host = endpoint.hostname or ""
    port = endpoint.port or (443 if endpoint.scheme == "https" else 80)
    try:
        with socket.create_connection((host, port), timeout=seconds):
            return True
    except OSError:
        return False
