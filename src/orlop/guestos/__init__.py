"""Builds the guest: kernel, initial RAM disk and root image, out of distribution packages."""
