"""Attacks on a node, each of which must fail; where a guard can be left out, they are shown to work then."""
