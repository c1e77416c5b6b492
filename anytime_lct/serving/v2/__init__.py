"""The Open Inference Protocol V2 in bytes: requests read, answers written, the server described."""
