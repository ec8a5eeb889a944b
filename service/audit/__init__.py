"""A record of every prediction that was answered, so that a score can be explained a year later. Optional.

Knows nothing of the web framework or of the model: it keeps what it is handed.

    entries    what is kept of one prediction        store     SQLite or PostgreSQL, by URL
    writer     many requests, one commit
"""
