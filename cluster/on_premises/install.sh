#!/bin/bash
# Install kt_ray and its services on plain hosts by SSH. Usage: install.sh HEAD [WORKER…]
# In the working directory: kt-ray.env, mlflow.env (both filled in), constraints.txt, dist/kt_ray-*.whl.
# shellcheck disable=SC2029  # names are put in here, not on the host
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
head="${1:?usage: install.sh HEAD [WORKER…]}"
shift
wheels=(dist/kt_ray-*.whl)
[[ ${#wheels[@]} -eq 1 && -f "${wheels[0]}" ]] || { echo "expected one dist/kt_ray-*.whl; see README.md" >&2; exit 2; }
for file in kt-ray.env mlflow.env; do
    [[ -f "$file" ]] || { echo "no $file here; copy it from its .example" >&2; exit 2; }
    if grep --line-number CHANGE_ "$file"; then echo "$file still has the values above to change" >&2; exit 2; fi
done

install_on() { # HOST SERVICE…: the wheel, the settings and the services
    local host="$1"
    shift
    echo "== $host: $*"
    # shellcheck disable=SC2087  # the wheel's name is put in here, not there
    ssh "root@$host" bash -euo pipefail -s <<REMOTE
id kt-ray >/dev/null 2>&1 || useradd --system --create-home kt-ray
install -d -m 755 /opt/kt-ray
install -d -m 700 /etc/kt-ray
test -d /opt/kt-ray/venv || python3 -m venv /opt/kt-ray/venv
REMOTE
    scp -q "${wheels[0]}" constraints.txt "root@$host:/opt/kt-ray/"
    ssh "root@$host" "umask 077 && cat >/etc/kt-ray/kt-ray.env" <kt-ray.env
    ssh "root@$host" "echo RAY_HEAD=$head:6379 >>/etc/kt-ray/kt-ray.env"
    ssh "root@$host" "/opt/kt-ray/venv/bin/pip install --quiet --constraint /opt/kt-ray/constraints.txt '/opt/kt-ray/$(basename "${wheels[0]}")[cluster]'"
    for service in "$@"; do
        scp -q "$here/$service.service" "root@$host:/etc/systemd/system/"
        if [[ "$service" == mlflow ]]; then
            ssh "root@$host" "umask 077 && cat >/etc/kt-ray/mlflow.env" <mlflow.env
            ssh "root@$host" "install -m 644 /dev/stdin /etc/kt-ray/basic_auth.ini && chmod 755 /etc/kt-ray" <"$here/basic_auth.ini"
        fi
        ssh "root@$host" "systemctl daemon-reload && systemctl enable '$service' && systemctl restart '$service'"
    done
}

install_on "$head" ray-head mlflow
for worker in "$@"; do
    install_on "$worker" ray-worker
done
echo "the dashboard: ssh -N -L 8265:127.0.0.1:8265 root@$head"
