"""Cutting: where a network can be cut, what groups cost, and the groups that come out."""
