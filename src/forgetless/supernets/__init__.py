"""Networks that hold the weights of every architecture of a space: `forward(x, architecture)`, `used_parameters`."""
