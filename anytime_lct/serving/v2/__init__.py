"""The Open Inference Protocol V2 in bytes: it reads requests, writes answers, and describes the server."""
