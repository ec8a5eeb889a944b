"""How sure predictions are, measured: conformal thresholds, selective prediction, arbitration between experts."""
