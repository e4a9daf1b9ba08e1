"""``cprune compare``: methods side by side on the same network, data, device and floor."""
