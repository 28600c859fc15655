"""gRPC on Unix sockets: what is served, and under which names; errors become statuses here."""
