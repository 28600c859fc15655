"""A client of the daemon for Python programs; the command ``orlop`` is made of it.

Its public names are those of :mod:`orlop`. What fails raises :mod:`orlop.errors`.
"""
