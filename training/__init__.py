"""Trains I2MoE models: data, model, objective, trainer, evaluation and report. Knows nothing of ONNX or HTTP."""
