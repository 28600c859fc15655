"""What one node does for the networks of tenants: routers, packet filters, addresses of pods."""
