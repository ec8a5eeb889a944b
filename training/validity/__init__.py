"""How far a trained model's explanations can be trusted where no truth is known.

    coalitions   the model's margin for every set of modalities      games        what such margins say, exactly
    attribution  from experts' contributions to modalities           orders       deletion and insertion
    agreement    contributions against games                         randomised   the same model with random experts
    resampled    the dataset level when rows are drawn again         tokens       rows as the experts see them
    judge        all of it, for the rows of a split                  stability    runs that differ in their seed alone
    estimates    figures with intervals                              rows_file    what is kept of a run's test rows

Knows nothing of what is true about a patient: only whether explanations say what the model does.
"""
