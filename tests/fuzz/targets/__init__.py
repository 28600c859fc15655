"""The targets, by what they are about."""
