"""Processes of a run: who takes part, the links between them, and what happens when one is lost."""
