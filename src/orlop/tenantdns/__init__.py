"""Names of tenants: what each tenant's pods are answered, and the sockets in its routers that answer."""
