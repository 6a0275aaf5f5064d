"""The MLP-Mixer and its training in PyTorch."""
