"""The I2MoE model: encoders, fusion experts, reweighting, mixture, calibration."""
