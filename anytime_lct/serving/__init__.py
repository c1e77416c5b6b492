"""Bundles answered over HTTP, by the Open Inference Protocol V2; needs no torch."""
