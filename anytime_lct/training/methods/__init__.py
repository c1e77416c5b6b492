"""Training methods: local critic training, and what users would take instead of it."""
