"""Small servers on top of `acceltcp.host`: an echo service and an HTTP file server."""
