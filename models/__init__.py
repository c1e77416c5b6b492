"""The networks of the paper by name, and those of torchvision, timm and the user's own files."""
