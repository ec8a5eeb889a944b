"""Who may call the service: API keys with scopes and a rate. Knows nothing of HTTP.

keys    the file of keys        __main__    `python -m service.access new NAME --scopes predict`
"""
