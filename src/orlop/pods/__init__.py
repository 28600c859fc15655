"""The domain: pods and containers, their states, the journal, events, stats."""
