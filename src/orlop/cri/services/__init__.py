"""The calls of CRI, one class per noun; :mod:`orlop.rpc.router` binds them to their names."""
