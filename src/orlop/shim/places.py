"""Names that the command, the keeper and the daemon have in common. Imports nothing."""

FRONT = "shim"
"""Whose pods those of this front are."""

SOCKET = "shim-{namespace}.sock"
"""In the state directory: where containerd and the command connect, one for each of containerd's namespaces,
which containerd 1.6 does not say with its calls; the keeper's."""

DAEMON_SOCKET = "shims.sock"
"""Where the keeper connects for each of them; the daemon's."""

HOLD_SOCKET = "shims-keeper.sock"
"""Where the daemon says what is to be held while it is away, and the command where to listen."""

ASIDE = ".new"
"""Behind the name of a socket that is not in its place yet."""

LOCK = "shims.lock"
"""Held, with others, by who connects to the keeper, and alone by a keeper that ends."""

START_LOCK = "shims-start.lock"
"""Held by who starts a keeper."""

LOCAL = "/run/orlop"
"""The state directory, unless ORLOP_STATE says otherwise."""

NAMESPACE = "containerd-namespace-ttrpc"
"""The metadata of a call with the namespace that it is about."""

AGAIN = "orlop-again"
"""The metadata of a call that an earlier daemon may have had already."""

DOOR_SERVICE = "orlop.shim.v1.Door"
