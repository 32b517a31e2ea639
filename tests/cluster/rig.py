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
import signal
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
from kt_ray.config import Source, StudyConfig, validate_source
from kt_ray.zoo.store import ZooStore

STUDY = Path(__file__).parent / "study.yaml"
PATIENCE = 600  # seconds for one thing to happen, on a machine that may have others
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
        self.start_cluster()
        self.tracking.await_answer()
        self.tell("PostgreSQL and MLflow are up")

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
            # A node that is silent for a quarter of a minute is given up (Ray's own: over a minute).
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "3000",
            "RAY_health_check_failure_threshold": "4",
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
        seconds = self.await_nodes(PATIENCE)
        self.tell("a Ray cluster of three nodes is up", took=round(seconds, 1))

    def start_worker(self, name: str) -> None:
        """Ray on a worker's host."""
        RayNode(self.hosts[name], WORKERS[name], self.environment, self.head).start()

    def await_nodes(self, seconds: float) -> float:
        """Wait until head and workers are alive; how long it took."""
        return wait_for("all nodes are alive", lambda: len(self.alive()) == 1 + len(WORKERS), seconds)

    def alive(self) -> set[str]:
        """The hosts whose node the head counts as alive."""
        nodes = (self.ask("/nodes?view=summary") or {"data": {"summary": []}})["data"]["summary"]
        addresses = {
            node["raylet"].get("nodeManagerAddress") for node in nodes if node["raylet"].get("state") == "ALIVE"
        }
        return {name for name, host in self.network.hosts.items() if host.address in addresses}

    def given_up(self, name: str) -> bool:
        """Whether the head counts `name` as dead."""
        alive = self.alive()
        return "head" in alive and name not in alive

    def ask(self, path: str) -> Any:
        """What the head's HTTP server answers the client's host; None where it does not. Lighter than `kt-ray`."""
        done = self.client.run([sys.executable, "-I", "-c", ASK, self.address + path], self.token_only())
        return json.loads(done.stdout) if done.returncode == 0 else None

    def submit(self, name: str) -> str:
        """`kt-ray submit` on the client's host; the job's id."""
        done = self.client.run(self._submission(name, "--detach"), self.token_only(), timeout=PATIENCE)
        assert done.returncode == 0, done.stderr + done.stdout
        job = done.stdout.split()[1]
        self.tell(f"job {job} submitted from the client")
        return job

    def submit_and_follow(self, name: str) -> subprocess.CompletedProcess[str]:
        """`kt-ray submit` on the client's host, to the job's end."""
        self.tell(f"study {name} is submitted again and followed")
        done = self.client.run(self._submission(name), self.token_only(), timeout=3 * PATIENCE)
        self.tell("the job has ended", exit_status=done.returncode)
        return done

    def _submission(self, name: str, *more: str) -> list[str]:
        overrides = [f"name={name}", f"zoo.name={name}", f"project={name}", f"model_name={name}"]
        options = [option for override in overrides for option in ("--set", override)]
        return [*KT_RAY, "submit", str(STUDY), "--address", self.address, *options, *more]

    def logs(self, job: str) -> str:
        """`kt-ray jobs logs` on the client's host: what the job printed."""
        command = [*KT_RAY, "jobs", "logs", job, "--address", self.address]
        return self.client.run(command, self.token_only(), timeout=PATIENCE).stdout

    def listed(self) -> dict[str, str]:
        """`kt-ray jobs list` on the client's host: status by job."""
        command = [*KT_RAY, "jobs", "list", "--address", self.address, "--format", "json"]
        done = self.client.run(command, self.token_only(), timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return {entry["id"]: entry["status"] for entry in json.loads(done.stdout)}

    def over(self, job: str) -> bool:
        """Whether the job has ended."""
        return (self.ask(f"/api/jobs/{job}") or {}).get("status") in ("SUCCEEDED", "FAILED", "STOPPED")

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
        rows = self.sql(
            "optuna",
            f"SELECT count(*) FROM trials JOIN studies USING (study_id) "
            f"WHERE study_name = '{name}' AND state = 'COMPLETE'",
        )
        return int(rows[0][0]) if rows else 0

    def seen(self, *titles: str) -> list[str]:
        """The hosts on which a process with one of these titles runs."""
        found = {"head": self.head} | self.hosts
        programs = {name: "\n".join(host.programs().values()) for name, host in found.items()}
        return [name for name, running in programs.items() if any(title in running for title in titles)]


TRIAL = ("ray::TaskTrial", "ray::ResourceTrainable")  # between epochs, and in one
KT_RAY = [sys.executable, "-m", "kt_ray"]
ASK = """
import os, sys, urllib.request
ask = urllib.request.Request(sys.argv[1], headers={"Authorization": "Bearer " + os.environ["RAY_AUTH_TOKEN"]})
print(urllib.request.urlopen(ask, timeout=10).read().decode())
"""


def calm(rig: Rig, name: str) -> dict[str, Any]:
    """The study with nothing in its way; where its actors and trials were seen."""
    job = rig.submit(name)
    trainers, trials = set(), set()

    def watch() -> bool:
        trainers.update(rig.seen("ray::Trainer"))
        trials.update(rig.seen(*TRIAL))
        return rig.over(job)

    took = wait_for(f"job {job} ends", watch, 3 * PATIENCE)
    rig.tell(f"job {job} ended", took=round(took, 1))
    check(rig.listed()[job] == "SUCCEEDED", f"job {job} succeeds", rig, rig.logs(job))
    return {"seconds": round(took, 1), "zoo_actors_on": sorted(trainers), "trials_on": sorted(trials)}


def storm(rig: Rig, name: str, members: int, trials: int) -> dict[str, Any]:
    """The same study with everything in its way."""
    began = time.monotonic()
    job = rig.submit(name)
    wait_for("the first members", lambda: 0 < rig.members(name) < members, PATIENCE)
    lose(rig, "worker1", f"{rig.members(name)} of {members} members are built")
    joined = rig.await_nodes(PATIENCE)
    rig.tell(f"a new worker1 joined after {joined:.0f} s; {rig.members(name)} of {members} members are built")
    wait_for("a first trial", lambda: rig.finished(name) >= 1, 2 * PATIENCE)
    lose(rig, "worker2", f"{rig.finished(name)} of {trials} trials are complete")
    cut_worker_and_mlflow(rig, "worker1", name, trials)
    rig.database.restart(away=3)
    done = rig.finished(name)
    rig.tell(f"PostgreSQL was restarted; {done} of {trials} trials are complete")
    wait_for("another trial, or the job's end", lambda: rig.finished(name) > done or rig.over(job), PATIENCE)
    if rig.over(job):
        rig.tell("the job did not outlive that; it is submitted again")
        job = rig.submit(name)
        wait_for("another trial", lambda: rig.finished(name) > done, PATIENCE)
    else:
        rig.tell("the job outlived that")
    rig.head.unplug()
    done = rig.finished(name)
    check(1 <= done < trials, f"the head is dead when {done} of {trials} trials are complete", rig)
    for worker, host in rig.hosts.items():
        host.unplug()
        rig.hosts[worker] = rig.network.host(worker)
    rig.head = rig.network.host("head")
    rig.start_cluster()
    ended = rig.submit_and_follow(name)
    check(ended.returncode == 0, "the job succeeds, and so does `kt-ray submit`", rig, ended.stdout + ended.stderr)
    return {"seconds": round(time.monotonic() - began, 1)}


def lose(rig: Rig, name: str, when: str) -> None:
    """Pull the plug of a worker; once Ray has given it up, bring up a new machine in its place."""
    rig.hosts[name].unplug()
    rig.tell(f"{name} is dead: {when}")
    given_up = wait_for(f"Ray gives {name} up", lambda: rig.given_up(name), PATIENCE)
    rig.hosts[name] = rig.network.host(name)
    rig.start_worker(name)
    rig.tell(f"Ray gave {name} up after {given_up:.0f} s; a new one starts")


def cut_worker_and_mlflow(rig: Rig, worker: str, name: str, trials: int) -> None:
    """A worker that runs a trial is cut off until Ray has given it up, and MLflow is away for as long."""
    wait_for(f"{worker} runs a trial", lambda: worker in rig.seen(*TRIAL), PATIENCE)
    rig.hosts[worker].cut()
    rig.tracking.kill()
    done = rig.finished(name)
    rig.tell(f"the cable of {worker} is out, MLflow is dead; {done} of {trials} trials are complete")
    cut = wait_for(f"Ray gives {worker} up", lambda: rig.given_up(worker), PATIENCE)
    rig.tell(f"Ray gave {worker} up after {cut:.0f} s", its_trial_goes_on_there=worker in rig.seen(*TRIAL))
    wait_for("a trial without them", lambda: rig.finished(name) > done, PATIENCE)
    rig.tell(f"{rig.finished(name)} of {trials} trials are complete without them; the cable is back, MLflow starts")
    rig.hosts[worker].mend()
    rig.tracking.start()
    joined = rig.await_nodes(PATIENCE)
    rig.tracking.await_answer()
    rig.tell(f"{worker} joined again after {joined:.0f} s, MLflow answers")


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
        "members": len(zoo),
        "duplicates": len(zoo) - len(set(zoo.index["id"].to_pylist())),
        "parameters_sha256": bits.hexdigest(),
        "trials": sorted((int(ordinals[lineage]), value) for lineage, value in trials),
        "translated_test_accuracy": next(
            row["mean"] for row in conclusion["evaluation"]["rows"] if row["name"] == "translated"
        ),
    }


def bookkeeping(rig: Rig, name: str) -> dict[str, Any]:
    """States that Optuna and MLflow are left with."""
    states = rig.sql(
        "optuna",
        f"SELECT state, count(*) FROM trials JOIN studies USING (study_id) WHERE study_name = '{name}' GROUP BY state",
    )
    runs = rig.sql(
        "mlflow",
        "SELECT status, count(*) FROM runs r JOIN experiments e ON "
        "e.experiment_id = r.experiment_id::int "
        f"WHERE e.name = '{name}' AND r.lifecycle_stage = 'active' GROUP BY status",
    )
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
    config = validate_source(StudyConfig, Source(STUDY))
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # leaves every `with` behind
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
                members = sum(config.zoo.members.model_dump().values())
                results["storm"] = storm(rig, "storm", members, config.search.trials)
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
        "passed": not failure,
        "failure": failure,
        "command": "make test-cluster",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "kt_ray": __version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    if options.results:
        options.results.write_text(json.dumps(results, indent=1) + "\n")
    print("the rig passed" if not failure else f"the rig FAILED: {failure}")
    return bool(failure)


if __name__ == "__main__":
    sys.exit(main())
