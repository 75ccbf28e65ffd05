"""asyncio's own interfaces on the NIC: transports, servers, streams, an event loop."""
