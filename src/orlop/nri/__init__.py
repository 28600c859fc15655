"""The Node Resource Interface: plug-ins of the node that hear of pods and containers, and may adjust them."""
