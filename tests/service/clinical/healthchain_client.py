"""Run by a Python that has healthchain: sends CDS Hooks requests to a service and writes what its own models make of the answers.

python healthchain_client.py SERVICE_URL PREFETCH.json PATIENT_ID ANSWERS.json
"""

import json
import sys
from pathlib import Path

from healthchain.models import CDSResponse
from healthchain.sandbox import SandboxClient

url, prefetch, patient_id, answers_path = sys.argv[1:]
own = SandboxClient(url=url, workflow="patient-view")
own.load_from_path(prefetch)
own.requests[0].context.patientId = patient_id
synthetic = SandboxClient(url=url, workflow="patient-view")
synthetic.load_synthetic(n=3, random_seed=1)
for request in synthetic.requests:  # its contexts name other patients than its data are about
    request.context.patientId = request.prefetch["patient"].id
answers = {"own": own.send_requests(), "synthetic": synthetic.send_requests()}
for sent in answers.values():
    for answer in sent:
        assert CDSResponse(**answer).cards, answer
Path(answers_path).write_text(json.dumps(answers))
