"""The calls of CRI, one class per noun; :mod:`orlop.cri.rpc` binds them to their names."""
