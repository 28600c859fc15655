"""Named volumes for whoever speaks CSI: a front of :mod:`orlop.volumes`."""
