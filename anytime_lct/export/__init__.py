"""Export: a trained network as ONNX files, compared with torch."""
