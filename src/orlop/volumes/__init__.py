"""Named volumes of this machine: disks with a name and a size, that outlive the pods that use them."""
