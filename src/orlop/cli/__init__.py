"""``orlop`` for people."""
