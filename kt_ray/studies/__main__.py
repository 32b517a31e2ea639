"""The job of `check_cluster` on a cluster's head.

`python -m kt_ray.studies [--allow-code] study.yaml WORKSPACE [OVERRIDE…]`
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from kt_ray.errors import KTError
from kt_ray.jobs.job import ALLOW_CODE
from kt_ray.studies.cluster_check import RESULT, check_cluster
from kt_ray.studies.permission import Permission

file, workspace, *overrides = [argument for argument in sys.argv[1:] if argument != ALLOW_CODE]
try:
    permission = Permission.at(workspace, ALLOW_CODE in sys.argv)
    found = check_cluster(Path(file), "auto", workspace=workspace, overrides=overrides, permission=permission)
except KTError as error:
    sys.exit(str(error))
sys.stdout.write(f"{RESULT}{json.dumps(asdict(found))}\n")
