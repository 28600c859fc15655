"""What a pod runs in: one interface (``base``), values (``spec``), implementations (``vm``, ``process``)."""
