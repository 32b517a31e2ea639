"""A study on several hosts, undisturbed and disturbed: `sudo python tests/cluster/rig.py`, or `make test-cluster`.

Five hosts (network namespaces, see hosts.py): a head, two workers with labels and logical GPUs, a host with PostgreSQL
and MLflow, and the client that submits. The same seeded study runs twice. The second time a worker dies while the zoo
is built and another while the search runs, a worker's cable is out for a while, database and MLflow restart, and the
head dies with its whole cluster. At the end every member and trial is there once, with the figures of the first time.
"""

# ruff: noqa: T201  (a script that tells what it does)

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # a script: its neighbours are no package

import hosts
import services
from hosts import Network
from services import BIN, DASHBOARD, Database, RayNode, Tracking, wait_for

from kt_ray import __version__
from kt_ray.config import StudyConfig, load_config
from kt_ray.zoo.store import ZooStore

STUDY = Path(__file__).parent / "study.yaml"
WORKERS = {
    "worker1": ["--num-cpus=2", "--num-gpus=1", "--labels=role=worker,size=big", '--resources={"search": 1}'],
    "worker2": ["--num-cpus=2", "--num-gpus=1", "--labels=role=worker,size=small", '--resources={"search": 1}'],
}


class Rig:
    """The hosts and what runs on them."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.shared = network.directory / "shared"
        self.shared.mkdir()
        self.events: list[dict[str, Any]] = []
        self.began = time.monotonic()
        self.token = secrets.token_hex(32)
        self.head = network.host("head")
        self.hosts = {name: network.host(name) for name in WORKERS}
        service = network.host("services")
        self.client = network.host("client")
        self.database = Database(service, network.directory / "postgresql", secrets.token_hex(16))
        self.tracking = Tracking(self.database, network.directory / "artifacts", "kt", secrets.token_hex(16))
        self.database.create()
        self.tracking.start()
        self.tell("PostgreSQL and MLflow are up")
        self.start_cluster()

    @property
    def environment(self) -> dict[str, str]:
        """What every Ray node has: storages and secrets."""
        return self.token_only() | {
            "KT_RAY_WORKSPACE": str(self.shared),
            "KT_RAY_STORAGE_STUDY": self.database.url("optuna"),
            "KT_RAY_STORAGE_TRACKING": self.tracking.uri,
            "PGPASSWORD": self.database.password,
            "MLFLOW_TRACKING_USERNAME": self.tracking.user,
            "MLFLOW_TRACKING_PASSWORD": self.tracking.password,
            "OMP_NUM_THREADS": "1",
        }

    def token_only(self) -> dict[str, str]:
        """What the client has: nothing but the token."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "PYTHONPATH") if name in os.environ}
        return kept | {
            "PATH": f"{BIN}:/usr/sbin:/usr/bin:/sbin:/bin",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
        }

    @property
    def address(self) -> str:
        """The job server's, for the client."""
        return f"http://{self.head.address}:{DASHBOARD}"

    def tell(self, what: str, **more: Any) -> None:
        """Note an event with its time."""
        seconds = round(time.monotonic() - self.began, 1)
        self.events.append({"seconds": seconds, "event": what, **more})
        print(f"{seconds:7.1f} s  {what}  {more or ''}", flush=True)

    def start_cluster(self) -> None:
        """Head, then workers; wait until all have joined."""
        RayNode(self.head, ["--num-cpus=2", "--labels=role=head"], self.environment).start()
        for name in WORKERS:
            self.start_worker(name)
        seconds = wait_for("three nodes", lambda: self.nodes() == 3, 240)
        self.tell("a Ray cluster of three nodes is up", took=round(seconds, 1))

    def start_worker(self, name: str) -> None:
        """Ray on a worker's host."""
        RayNode(self.hosts[name], WORKERS[name], self.environment, self.head).start()

    def nodes(self) -> int:
        """How many nodes the head counts as alive."""
        asked = self.client.run(
            [sys.executable, "-c", NODES, self.address], self.token_only() | {"PYTHONWARNINGS": "ignore"}
        )
        return int(asked.stdout or 0) if asked.returncode == 0 else 0

    def submit(self, name: str) -> str:
        """`kt-ray submit` on the client's host; the job's id."""
        overrides = [f"name={name}", f"zoo.name={name}", f"project={name}", f"model_name={name}"]
        done = self.client.run([sys.executable, "-c", SUBMIT, str(STUDY), self.address, *overrides], self.token_only())
        assert done.returncode == 0, done.stderr + done.stdout
        job = done.stdout.strip().splitlines()[-1]
        self.tell(f"job {job} submitted from the client")
        return job

    def jobs(self) -> list[dict[str, Any]]:
        """The jobs that the head remembers, the newest first."""
        done = self.client.run([sys.executable, "-c", LIST, self.address], self.token_only())
        return list(json.loads(done.stdout)) if done.returncode == 0 else []

    def logs(self, job: str) -> str:
        """What the job printed."""
        return self.client.run([sys.executable, "-c", LOGS, job, self.address], self.token_only()).stdout

    def status(self, job: str) -> str:
        """The job's status; empty where the head does not answer."""
        return next((str(entry["status"]) for entry in self.jobs() if entry["id"] == job), "")

    def members(self, name: str) -> int:
        """How many members the zoo has."""
        store = ZooStore(str(self.shared / "zoos" / name))
        return len(store.present()) if store.exists() else 0

    def sql(self, database: str, query: str) -> list[list[str]]:
        """Rows of a query, as text."""
        command = ["psql", "-h", self.database.host.address, "-U", "kt_ray", "-d", database, "-AtF", "\t", "-c", query]
        done = self.client.run(command, os.environ | {"PGPASSWORD": self.database.password})
        return [line.split("\t") for line in done.stdout.splitlines()] if done.returncode == 0 else []

    def finished(self, name: str) -> int:
        """How many trials are complete."""
        rows = self.sql("optuna", f"SELECT count(*) FROM trials JOIN studies USING (study_id) "
                                  f"WHERE study_name = '{name}' AND state = 'COMPLETE'")  # fmt: skip
        return int(rows[0][0]) if rows else 0

    def seen(self, title: str) -> list[str]:
        """The hosts on which a process with that title runs."""
        found = {"head": self.head} | self.hosts
        return [name for name, host in found.items() if any(title in program for program in host.programs().values())]


SUBMIT = """
import sys
from pathlib import Path
from kt_ray import jobs
file, address, *overrides = sys.argv[1:]
print(jobs.submit(Path(file), address, overrides=overrides))
"""
LOGS = """
import sys
from kt_ray import jobs
print(jobs.logs(*sys.argv[1:]))
"""
LIST = """
import json, sys
from kt_ray import jobs
print(json.dumps([job.to_dict() for job in jobs.jobs(sys.argv[1])]))
"""
NODES = """
import json, os, sys, urllib.request
ask = urllib.request.Request(sys.argv[1] + "/nodes?view=summary",
                             headers={"Authorization": "Bearer " + os.environ["RAY_AUTH_TOKEN"]})
summary = json.load(urllib.request.urlopen(ask, timeout=5))["data"]["summary"]
print(sum(node["raylet"].get("state") == "ALIVE" for node in summary))
"""


def until_end(rig: Rig, job: str, seconds: float) -> str:
    """Wait for the job's end; its status."""
    wait_for(f"job {job} ends", lambda: rig.status(job) in ("SUCCEEDED", "FAILED", "STOPPED"), seconds)
    status = rig.status(job)
    rig.tell(f"job {job} ended", status=status)
    return status


def calm(rig: Rig, name: str) -> dict[str, Any]:
    """The study with nothing in its way; where its actors and trials were seen."""
    job = rig.submit(name)
    trainers, trials = set(), set()

    def watch() -> bool:
        trainers.update(rig.seen("ray::Trainer"))
        trials.update(rig.seen("ray::TranslatorTrial"))
        return rig.status(job) in ("SUCCEEDED", "FAILED", "STOPPED")

    took = wait_for(f"job {job} ends", watch, 600)
    rig.tell(f"job {job} ended", status=rig.status(job), took=round(took, 1))
    check(rig.status(job) == "SUCCEEDED", f"job {job} succeeds", rig, rig.logs(job))
    return {"seconds": round(took, 1), "zoo_actors_on": sorted(trainers), "trials_on": sorted(trials)}


def storm(rig: Rig, name: str) -> dict[str, Any]:
    """The same study with everything in its way."""
    began = time.monotonic()
    job = rig.submit(name)
    wait_for("the first members", lambda: 0 < rig.members(name) < 28, 240)
    lose(rig, "worker1", f"{rig.members(name)} of 28 members are built")
    wait_for("the first trials", lambda: rig.finished(name) >= 1, 400)
    lose(rig, "worker2", f"{rig.finished(name)} of 8 trials are complete")
    wait_for("more trials", lambda: rig.finished(name) >= 2, 240)
    rig.hosts["worker1"].cut()
    rig.tell("the cable of worker1 is out")
    time.sleep(45)  # longer than Ray's health check bears
    rig.hosts["worker1"].mend()
    rig.tell("the cable of worker1 is back", nodes=rig.nodes())
    rig.tracking.restart(away=5)
    rig.tell("MLflow was killed and is back")
    rig.database.restart(away=3)
    rig.tell("PostgreSQL was restarted")
    time.sleep(5)
    if rig.status(job) not in ("PENDING", "RUNNING"):
        rig.tell("the job did not outlive that; it is submitted again", status=rig.status(job))
        job = rig.submit(name)
    wait_for("more trials", lambda: rig.finished(name) >= 4, 300)
    at = rig.finished(name)
    rig.head.unplug()
    rig.tell(f"the head is dead; {at} of 8 trials are complete")
    for name_, host in rig.hosts.items():
        host.unplug()
        rig.hosts[name_] = rig.network.host(name_)
    rig.head = rig.network.host("head")
    rig.start_cluster()
    job = rig.submit(name)
    status = until_end(rig, job, 600)
    check(status == "SUCCEEDED", f"job {job} succeeds", rig, rig.logs(job))
    return {"seconds": round(time.monotonic() - began, 1)}


def lose(rig: Rig, name: str, when: str) -> None:
    """Pull the plug of a worker, then bring up a new machine in its place."""
    rig.hosts[name].unplug()
    rig.tell(f"{name} is dead: {when}")
    time.sleep(10)
    rig.hosts[name] = rig.network.host(name)
    rig.start_worker(name)
    rig.tell(f"a new {name} starts")


def figures(rig: Rig, name: str) -> dict[str, Any]:
    """Everything that has to be the same: members with their bits, trials with their values."""
    store = ZooStore(str(rig.shared / "zoos" / name))
    zoo = store.read()
    import hashlib

    bits = hashlib.sha256()
    for key in sorted(zoo.parameters):
        bits.update(zoo.parameters[key].contiguous().numpy().tobytes())
    trials = rig.sql(
        "optuna",
        "SELECT p.lineage, round(v.value::numeric, 12) FROM (SELECT trial_id, COALESCE((SELECT value_json FROM "
        "trial_system_attributes a WHERE a.trial_id = t.trial_id AND key = 'failed_trial'), number::text) AS lineage "
        f"FROM trials t JOIN studies USING (study_id) WHERE study_name = '{name}' AND state = 'COMPLETE') p "
        "JOIN trial_values v USING (trial_id)",
    )
    ordinals = dict(
        rig.sql(
            "optuna",
            "SELECT number, value_json FROM trials t JOIN studies USING (study_id) JOIN trial_user_attributes a "
            f"USING (trial_id) WHERE study_name = '{name}' AND key = 'ordinal'",
        )
    )
    conclusion = json.loads((rig.shared / "studies" / name / "conclusion.json").read_text())
    return {
        "members": len(zoo), "duplicates": len(zoo) - len(set(zoo.index["id"].to_pylist())),
        "parameters_sha256": bits.hexdigest(),
        "trials": sorted((int(ordinals[lineage]), value) for lineage, value in trials),
        "translated_test_accuracy": next(
            row["mean"] for row in conclusion["evaluation"]["rows"] if row["name"] == "translated"
        ),
    }  # fmt: skip


def bookkeeping(rig: Rig, name: str) -> dict[str, Any]:
    """States that Optuna and MLflow are left with."""
    states = rig.sql("optuna", f"SELECT state, count(*) FROM trials JOIN studies USING (study_id) "
                               f"WHERE study_name = '{name}' GROUP BY state")  # fmt: skip
    runs = rig.sql("mlflow", "SELECT status, count(*) FROM runs r JOIN experiments e ON "
                             "e.experiment_id = r.experiment_id::int "
                             f"WHERE e.name = '{name}' AND r.lifecycle_stage = 'active' GROUP BY status")  # fmt: skip
    return {
        "optuna_trials": {state: int(count) for state, count in states},
        "mlflow_runs": {status: int(count) for status, count in runs},
    }


def check(fine: bool, what: str, rig: Rig, why: str = "") -> None:
    """Note what was found; raises AssertionError where it is not so."""
    rig.tell(f"{'yes' if fine else 'NO '}: {what}")
    if not fine:
        print(why)
        raise AssertionError(what)


def compare(rig: Rig, config: StudyConfig) -> dict[str, Any]:
    """Undisturbed against disturbed."""
    trials, members = config.search.trials, sum(config.zoo.members.model_dump().values())
    found = {name: figures(rig, name) | bookkeeping(rig, name) for name in ("calm", "storm")}
    for name, entry in found.items():
        check(entry["members"] == members and not entry["duplicates"], f"{name}: {members} members, each once", rig)
        ordinals = [ordinal for ordinal, _ in entry["trials"]]
        check(ordinals == list(range(trials)), f"{name}: {trials} trials, each complete once", rig)
        check("RUNNING" not in entry["optuna_trials"], f"{name}: Optuna has no trial left running", rig)
        runs = {"FINISHED": 1 + 1 + trials}
        check(entry["mlflow_runs"] == runs, f"{name}: MLflow has a run for the zoo, the study and each trial", rig)
    for key in ("parameters_sha256", "trials", "translated_test_accuracy"):
        check(found["calm"][key] == found["storm"][key], f"{key} is the same", rig)
    return found


def main() -> int:
    """Run it all; 0 where every check holds, 1 where one does not, 77 where there can be no rig."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="write what was found to this JSON file")
    parser.add_argument("--keep", action="store_true", help="keep the rig's directory with its logs")
    options = parser.parse_args()
    reason = hosts.lacking() or services.available()
    if reason:
        print(f"no rig here: {reason}")
        return 77
    config = load_config(StudyConfig, STUDY)
    directory = Path(tempfile.mkdtemp(prefix="ktrig-", dir="/tmp"))
    directory.chmod(0o755)  # PostgreSQL's user looks in
    results: dict[str, Any] = {}
    failure = ""
    try:
        with Network(directory) as network:
            rig = Rig(network)
            try:
                results["calm"] = calm(rig, "calm")
                check(results["calm"]["zoo_actors_on"] == list(WORKERS), "zoo actors ran on both workers only", rig)
                check(results["calm"]["trials_on"] == list(WORKERS), "trials ran where their resource is", rig)
                results["storm"] = storm(rig, "storm")
                results["found"] = compare(rig, config)
            except (AssertionError, TimeoutError, subprocess.SubprocessError) as error:
                failure = f"{type(error).__name__}: {error}"
                rig.tell(failure)
            results |= {"events": rig.events, "seconds": round(time.monotonic() - rig.began, 1)}
    finally:
        if options.keep or failure:
            print(f"logs: {directory / 'logs'}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    results |= {
        "passed": not failure, "failure": failure, "command": "make test-cluster",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores", "kt_ray": __version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }  # fmt: skip
    if options.results:
        options.results.write_text(json.dumps(results, indent=1) + "\n")
    print("the rig passed" if not failure else f"the rig FAILED: {failure}")
    return bool(failure)


if __name__ == "__main__":
    sys.exit(main())
