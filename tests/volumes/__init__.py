"""What a program asks of a volume, and the volumes that a kubelet makes."""
