"""Below TCP: our addresses, routes, neighbours, ICMP. `Network` is all of it for one MAC port."""

from .addresses import Addresses
from .icmp import IcmpErrorKind, checksum, fold
from .neighbours import NeighbourSettings, NeighbourState
from .network import Network
from .responder import Responder
from .routes import Route

__all__ = [
    "Addresses",
    "IcmpErrorKind",
    "NeighbourSettings",
    "NeighbourState",
    "Network",
    "Responder",
    "Route",
    "checksum",
    "fold",
]
