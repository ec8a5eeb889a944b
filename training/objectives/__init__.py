"""What models are trained to do: one module per objective, with what they share in `base` and `evidence`."""
