"""Who may call the service: API keys and access tokens, with scopes and a rate. Serves nothing itself.

keys    the file of keys                      __main__    `python -m service.access new NAME --scopes predict`
oidc    access tokens of an identity provider tokens      what all signed tokens have in common
jwks    their issuers' public keys            settings    I2MOE_OIDC_*
"""
