"""Tenants as an administrator installs them: operator and agents are pods of the image made for them."""
