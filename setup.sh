#!/usr/bin/env bash
# Prepare this machine: the Python environment in venv/, .env, and a look at what Docker will need.
#
#     ./setup.sh             again at any time: it changes only what is missing
#     ./setup.sh --docker    the same, then pull and build the images that `docker compose up -d` starts
#
# Exit codes: 0 Python is ready (what Docker lacks is said, and is no failure), 1 something is in the way.
set -euo pipefail
cd "$(dirname "$0")"

readonly NEEDED_GB=2
readonly FILES=(
  requirements.lock requirements-collector.lock docker-compose.yml Dockerfile .env.example config.py
  clickhouse-config-simple.xml ch_setup.py btcdat.py ethdat.py soldat.py verif.py docker/entrypoint.sh docker/clickhouse-users.xml pipeline
)

ok() {
  printf '[ok]      %s\n' "$*"
}

missing() {
  printf '[missing] %s\n' "$*"
}

fail() {
  missing "$*" >&2
  exit 1
}

check_files() {
  local file absent=()
  for file in "${FILES[@]}"; do
    [[ -e $file ]] || absent+=("$file")
  done
  ((${#absent[@]} == 0)) || fail "the project's files are incomplete: ${absent[*]}"
  ok "project files"
}

check_disk() {
  local free_kb
  free_kb=$(df -Pk . | awk 'NR == 2 { print $4 }')
  if ((free_kb < NEEDED_GB * 1024 * 1024)); then
    missing "free disk: $((free_kb / 1024)) MB here, at least $NEEDED_GB GB are needed"
  else
    ok "free disk: $((free_kb / 1024 / 1024)) GB"
  fi
}

# find_python: set python to the first that is new enough.
find_python() {
  local candidate
  for candidate in "${PYTHON:-python3}" python3.14 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      python=$candidate
      ok "$("$python" --version)"
      return
    fi
  done
  fail "Python 3.11 or newer; python3 is $(python3 --version 2>&1 | tail -n 1). Install one, then: PYTHON=python3.11 ./setup.sh"
}

make_venv() {
  if ! venv/bin/python -c '' 2>/dev/null; then
    "$python" -m venv --clear venv >/dev/null ||
      fail "Python's venv module: sudo apt-get install python3-venv, then ./setup.sh again"
  fi
  if ! cmp -s requirements.lock venv/requirements.installed; then
    echo "Installing the packages in requirements.lock..."
    venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock ||
      fail "the packages in requirements.lock could not be installed: see above"
    cp requirements.lock venv/requirements.installed
  fi
  ok "Python environment: source venv/bin/activate"
}

# env_value NAME: print what .env gives NAME, read as the collectors' python-dotenv reads it: quotes and line ends of
# Windows are no part of a value, nor is a note after a blank, and of several lines the last one counts.
env_value() {
  local line rest value="" quoted="^[[:space:]]*('(([^'\\\\]|\\\\.)*)'|\"(([^\"\\\\]|\\\\.)*)\")[[:space:]]*(#.*)?$"
  while IFS= read -r line; do
    [[ ${line#$'\xef\xbb\xbf'} =~ ^[[:space:]]*(export[[:space:]]+)?([^[:space:]=#]+)[[:space:]]*=(.*)$ ]] || continue
    [[ ${BASH_REMATCH[2]} == "$1" || ${BASH_REMATCH[2]} == "'$1'" ]] || continue
    rest=${BASH_REMATCH[3]}
    if [[ $rest =~ $quoted ]]; then
      value=${BASH_REMATCH[2]}${BASH_REMATCH[4]}
    elif [[ ! $rest =~ ^[[:space:]]*[\'\"] ]]; then
      read -r value <<<"${rest%%[[:space:]]#*}"
    fi
  done < <(tr '\r' '\n' <.env)
  printf '%s' "$value"
}

random() {
  od -An -N20 -tx1 /dev/urandom | tr -d ' \n'
}

# make_env: what is in .env stays; only passwords for ClickHouse are added where there are none.
make_env() {
  local name
  if [[ ! -e .env ]]; then
        (umask 077 && sed "s/^CLICKHOUSE_PASSWORD=$/&$(random)/; s/^CLICKHOUSE_COLLECTOR_PASSWORD=$/&$(random)/" .env.example >.env)
    ok ".env: made from .env.example, with random passwords for ClickHouse"
  fi
  for name in CLICKHOUSE_PASSWORD CLICKHOUSE_COLLECTOR_PASSWORD; do
    if [[ -z $(env_value "$name") ]]; then
      printf '\n# Made by setup.sh\n%s=%s\n' "$name" "$(random)" >>.env
      ok ".env: added a random $name"
    fi
  done
  chmod 600 .env
  while read -r name; do
    missing ".env: $name has a note and no value; docker-compose 1.29 takes the note for one: give it a line of its own"
  done < <(sed -nE 's/^[[:space:]]*(export[[:space:]]+)?([A-Z_]+)[[:space:]]*=[[:space:]]+#.*/\2/p' .env)
  check_credentials
}

# check_credentials: say what there is of them; where there are any, no container may run without, by an omission.
check_credentials() {
  local user user_file=""
  user=$(env_value NORDVPN_USER)
  user_file=$(env_value NORDVPN_USER_FILE)
  [[ :$(env_value COMPOSE_FILE): != *:docker-compose.secrets.yml:* ]] || user_file=secrets/nordvpn_user
  if [[ -n $user && -n $(env_value NORDVPN_PASS) ]]; then
    if [[ $user == *@* ]] && ! grep -qs VPN_CONFIG docker-compose.override.yml; then
      missing "VPN credentials: NORDVPN_USER is an e-mail address, which is the account's; service credentials are needed, see VPN-SETUP.md"
    else
      ok ".env: VPN credentials"
    fi
  elif [[ -n $user_file && -s $user_file ]]; then
    ok "VPN credentials: in files"
  elif grep -qs VPN_CONFIG docker-compose.override.yml; then
    ok "VPN: docker-compose.override.yml names a configuration"
  else
    missing "VPN credentials: put NORDVPN_USER and NORDVPN_PASS into .env, or run without VPN"
    return
  fi
  if [[ -z $(env_value VPN_REQUIRED) ]]; then
    printf '\n# Made by setup.sh: a container without VPN credentials ends, rather than run without a VPN\nVPN_REQUIRED=1\n' >>.env
    ok ".env: added VPN_REQUIRED=1"
  fi
}

# check_docker: set compose to the command that there is, if Docker can be used.
check_docker() {
  compose=()
  if ! command -v docker >/dev/null; then
    missing "Docker: see DEPLOYMENT.md (python3 btcdat.py works without it)"
    return
  fi
  if ! docker info >/dev/null 2>&1; then
    missing "Docker is installed, but does not answer: sudo systemctl start docker; or sudo usermod -aG docker $(id -un), then log in again"
    return
  fi
  ok "Docker"
  check_compose
  if [[ -c /dev/net/tun ]]; then
    ok "/dev/net/tun"
  else
    missing "/dev/net/tun: sudo modprobe tun; or, to run without VPN, TUN_DEVICE=/dev/null in .env"
  fi
}

# check_compose: version 2 where there is one. Version 1 asks Docker for what Docker has not told since 25.
check_compose() {
  local docker version
  if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
    ok "docker compose"
    return
  fi
  if ! command -v docker-compose >/dev/null; then
    missing "Docker Compose: sudo apt-get install docker-compose-v2 (Ubuntu) or docker-compose (Debian)"
    return
  fi
  compose=(docker-compose)
  docker=$(docker version --format '{{.Server.Version}}' 2>/dev/null) || true
  version=$(docker-compose version --short 2>/dev/null) || true
  if [[ $version == 1.* ]] && ((10#0${docker%%[!0-9]*} >= 25)); then
    missing "docker-compose $version cannot replace containers with Docker $docker (KeyError: 'ContainerConfig'): sudo apt-get install docker-compose-v2 (Ubuntu) or docker-compose-plugin (Docker's own packages)"
  else
    ok "docker-compose: type it, with the dash, wherever the guides say docker compose"
  fi
}

make_images() {
  ((${#compose[@]})) || fail "--docker needs Docker and Docker Compose"
  "${compose[@]}" pull clickhouse
  "${compose[@]}" build --pull setup
  [[ ,$(env_value COMPOSE_PROFILES), != *,export,* ]] || "${compose[@]}" build --pull export
  ok "images"
}

case ${*:-} in
  "" | --docker) ;;
  *)
    echo "usage: ./setup.sh [--docker]" >&2
    exit 1
    ;;
esac
check_files
check_disk
make_env
check_docker
find_python # what follows can fail, and Docker does not need it
make_venv
[[ ${1:-} != --docker ]] || make_images
echo
echo "Next: nano .env, then docker compose up -d. Or, with a ClickHouse of your own: python3 ch_setup.py, python3 btcdat.py"
