"""The job of `check_cluster`: `python -m kt_ray.studies study.yaml WORKSPACE [OVERRIDE…]`, on the cluster's head."""

import json
import sys
from pathlib import Path

from kt_ray.errors import KTError
from kt_ray.studies.cluster_check import RESULT, check_cluster

file, workspace, *overrides = sys.argv[1:]
try:
    found = check_cluster(Path(file), "auto", workspace=workspace, overrides=overrides)
except KTError as error:
    sys.exit(str(error))
sys.stdout.write(f"{RESULT}{json.dumps(found.to_dict())}\n")
