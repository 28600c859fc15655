"""Between CRI's messages and the plain values of ``pods`` and ``sandbox``: one module per noun."""
