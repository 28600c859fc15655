"""``orlop node``: what makes a machine a node, and undoes it."""
