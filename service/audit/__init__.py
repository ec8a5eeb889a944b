"""A record of every prediction that was answered, so that a score can be explained a year later. Optional.

Knows nothing of the web framework or of the model: it keeps what it is handed.

    entries    what is kept of one prediction        store     SQLite or PostgreSQL, by URL
    writer     many requests, one commit             tables    what it looks like inside
    outcomes   what became of predictions            figures   AUROC, Brier score, calibration
    __main__   `python -m service.audit report URL`

Only store, tables and outcomes know SQLAlchemy.
"""
