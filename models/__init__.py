"""The networks that the paper uses, by name, and those of other makes."""
