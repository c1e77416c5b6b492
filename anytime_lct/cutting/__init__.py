"""Cutting: where a network can be cut, what layer groups cost, and the groups themselves."""
