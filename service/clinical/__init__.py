"""What hospital systems speak: FHIR R4 and CDS Hooks 2.0, and how it becomes a record and an answer.

Adapters around `service.bundle`: only `routes` knows the web framework, nothing knows BentoML.

    resources      FHIR JSON, read defensively      times, units, analytes   FHIR times, UCUM, mass and amount
    observations, conditions, documents, people     one kind of resource each
    record         resources -> one record          risk_assessment, outcome, extensions   predictions -> FHIR
    hooks          the wire format of CDS Hooks     prefetch, cards          what is asked for, what is answered
    tokens         who may call                     settings, routes, openapi, examples
"""
