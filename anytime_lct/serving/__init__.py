"""Serving: answers to many clients at once, each within its budget and deadline; no torch."""
