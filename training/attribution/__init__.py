"""Which features drove each expert's contribution: two methods with one answer.

gradients   integrated gradients along the path on which all that is known becomes known at once; for smooth models
shapley     sampled Shapley values: features become known one after the other; for every model, at more passes a record
base        what they share: the baseline, the answer, the contribution
"""
