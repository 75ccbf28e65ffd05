"""An HTTP/1.1 load balancer (layer 7) whose long bodies the NIC forwards."""

from __future__ import annotations

from .config import Config, load
from .proxy import Proxy
from .service import LoadBalancer
from .streams import NicNet, SocketNet

__all__ = ["Config", "LoadBalancer", "NicNet", "Proxy", "SocketNet", "load"]
