#!/usr/bin/env bash
# Runs a collector as an ordinary user, and with VPN credentials only through a VPN:
#
#     kill switch -> server -> OpenVPN -> name servers -> collector; then watch all of it
#
# In: the collector's command as arguments; settings from the environment (VPN-SETUP.md).
# Out: the collector's exit code, 75 when the tunnel was lost, 78 when something is set up wrongly. Either way the
# container's restart policy starts it afresh, and the next start takes another server.
# Promise: with credentials, no packet of the collector leaves except through the tunnel and to ClickHouse.
set -euo pipefail

here=$(dirname "$(readlink -f "$0")")
readonly here
readonly STATE=/tmp/vpn # this container's memory of failures: survives a restart, not a new container

say() {
  printf 'VPN: %s\n' "$*"
}

die() {
  say "$*"
  exit 78
}

# pause SECONDS: sleep, but let signals through.
pause() {
  sleep "$1" &
  wait $!
}

running() {
  kill -0 "$1" 2>/dev/null
}

# stop PID SECONDS: end a child, by force if it takes longer.
stop() {
  local deadline=$((SECONDS + $2))
  kill -TERM "$1" 2>/dev/null || return 0
  while running "$1" && ((SECONDS < deadline)); do
    pause 0.1
  done
  kill -KILL "$1" 2>/dev/null || true
}

is_ipv4() {
  [[ $1 =~ ^([0-9]{1,3}\.){3}[0-9]{1,3}$ ]]
}

parse() {
  python3 -I "$here/vpn_parse.py" "$@"
}

# secret VARIABLE NAME: set VARIABLE to the value of NAME, or to the text of the file that NAME_FILE names.
secret() {
  local value=${!2:-} file=$2_FILE
  file=${!file:-}
  if [[ -z $value && -n $file ]]; then
    value=$(cat "$file") || die "$2_FILE=$file cannot be read"
  fi
  read -r value <<<"${value//$'\r'/}" # without blanks and line ends around it
  printf -v "$1" '%s' "$value"
}

# shellcheck source-path=SCRIPTDIR source=killswitch.sh
source "$here/killswitch.sh"
# shellcheck source-path=SCRIPTDIR source=servers.sh
source "$here/servers.sh"
# shellcheck source-path=SCRIPTDIR source=tunnel.sh
source "$here/tunnel.sh"

# check_settings: what goes into addresses, file names and rules is checked before it does.
check_settings() {
  [[ $PROTOCOL =~ ^(udp|tcp)$ ]] || die "VPN_PROTOCOL=$PROTOCOL is neither udp nor tcp"
  [[ $COUNTRY =~ ^[a-z]{2}$ ]] || die "VPN_COUNTRY=$COUNTRY is not a country's two letters, as us, uk or ca"
  [[ ${VPN_SERVER:-us1} =~ ^[a-z]{2}(-[a-z]+)?[0-9]+(\.nordvpn\.com)?$ ]] ||
    die "VPN_SERVER=$VPN_SERVER is not the name of a NordVPN server, as us1234.nordvpn.com"
  [[ ${VPN_DNS:-1.1.1.1} =~ ^[0-9.]+([ ,]+[0-9.]+)*$ ]] || die "VPN_DNS=$VPN_DNS is not a list of IPv4 addresses"
  [[ ${CLICKHOUSE_PORT:-9000} =~ ^[0-9]+$ ]] || die "CLICKHOUSE_PORT=$CLICKHOUSE_PORT is not a port"
  [[ ${METRICS_PORT:-0} =~ ^(0|[1-9][0-9]{0,4})$ ]] || die "METRICS_PORT=$METRICS_PORT is not a port"
  [[ -z ${VPN_CONFIG:-} || -r $VPN_CONFIG ]] || die "VPN_CONFIG=$VPN_CONFIG cannot be read: is it mounted?"
  [[ -n $username && -n $password || -z $username$password ]] ||
    die "NORDVPN_USER and NORDVPN_PASS: one is set without the other"
  [[ -n ${VPN_CONFIG:-} || $username != *@* ]] ||
    die "NORDVPN_USER is an e-mail address, which is the account's: service credentials are needed, see VPN-SETUP.md"
  if [[ -n ${VPN_CONFIG:-} && -z $username ]] && grep -q '^[[:space:]]*auth-user-pass' "$VPN_CONFIG"; then
    die "VPN_CONFIG=$VPN_CONFIG asks for a user name and password: set NORDVPN_USER and NORDVPN_PASS to them"
  fi
  [[ -c /dev/net/tun ]] || die "/dev/net/tun is missing: the container needs devices: /dev/net/tun"
  mkdir -p "$STATE" "$CACHE/failed" "$CACHE/in-use" "$CACHE/configs" || die "VPN_CACHE_DIR=$CACHE cannot be written"
}

# remember_dns: set container_dns, Docker's own name server, also when an earlier run of this container replaced it.
remember_dns() {
  if ! grep -q '^# VPN$' /etc/resolv.conf; then
    cp /etc/resolv.conf "$STATE/resolv.conf"
  fi
  cat "$STATE/resolv.conf" >/etc/resolv.conf
  container_dns=$(awk '$1 == "nameserver" { print $2; exit }' /etc/resolv.conf)
}

# connect_to_any: try servers, ever slower, until all traffic goes through the tunnel of one.
connect_to_any() {
  while true; do
    wait_turn
    killswitch "meta skuid 0 accept" # for DNS and NordVPN's API; there is no collector yet
    if ! choose_server; then
      killswitch ""
      count_failure other
      continue
    fi
    killswitch "meta skuid 0 ip daddr $address $protocol dport $port accept"
    say "connecting to $server ($address, $protocol port $port)"
    ! connect || return 0
    killswitch ""
    if refused; then
      echo "VPN authentication failed - check NordVPN credentials"
      say "$server refused them; not running without VPN, but trying another server, slowly"
      count_failure auth
    else
      say "no tunnel to $server: $(reason)"
      count_failure other
    fi
  done
}

# keep_tunnel: look after the tunnel, and return when it is no more.
keep_tunnel() {
  local round
  for ((round = 1; ; round++)); do
    tunnel_up || return 0
    sleep 2
    ((round % 2)) || knock
    ((round % 5)) || follow_clickhouse
    ((round != 30)) || forget_failures
  done
}

# watch: return when the collector, OpenVPN or the tunnel is no more. The work is a child's: bash can fail to run a
# trap, and so miss what `docker stop` sends, if the signal comes while it expands $(...).
watch() {
  keep_tunnel &
  local keeper=$!
  while running "$collector" && running "$openvpn" && running "$keeper"; do
    pause 1
  done
}

# finish: whatever ends this script, the collector ends first, and has 10 s to store what it holds.
# shellcheck disable=SC2317,SC2329 # the trap calls it
finish() {
  trap '' TERM INT
  [[ -z $collector ]] || stop "$collector" 12
  [[ -z $openvpn ]] || stop "$openvpn" 5
  rm -rf "$run"
}

# terminate: what `docker stop` asks for; the exit code is the collector's.
# shellcheck disable=SC2317,SC2329 # the trap calls it
terminate() {
  local code=0
  trap '' TERM INT
  if [[ -n $collector ]]; then
    stop "$collector" 12
    wait "$collector" || code=$?
  fi
  exit "$code"
}

(($# > 0)) || die "no command given: entrypoint.sh python3 btcdat.py"
if [[ $* == "python3 collect.py" && -z ${SYMBOLS:-} ]]; then
  trap 'exit 0' TERM INT
  echo "SYMBOLS is empty: nothing to collect here"
  while true; do pause 10; done # and not end: what Docker then starts again would end again
fi
id "${COLLECTOR_USER:=collector}" &>/dev/null || die "COLLECTOR_USER=$COLLECTOR_USER does not exist"
group=$(id -g "$COLLECTOR_USER")
as_collector=(setpriv --reuid "$COLLECTOR_USER" --regid "$group" --init-groups --inh-caps=-all --no-new-privs)
# Memory that nobody limits: what the collector writes belongs into its journal.
chmod o-w /dev/shm /dev/mqueue 2>/dev/null || true

secret username NORDVPN_USER
secret password NORDVPN_PASS
# What docker-compose 1.29 makes of an empty value with a note behind it.
for name in NORDVPN_USER NORDVPN_PASS; do
  [[ ${!name:-} != "# "* ]] || die "$name is a note, not a value: give it a line of its own in .env"
done
unset NORDVPN_USER NORDVPN_PASS # not the collector's business
if [[ -z $username$password && -z ${VPN_CONFIG:-} ]]; then
  [[ ${VPN_REQUIRED:-0} == 0 ]] ||
    die "VPN_REQUIRED=$VPN_REQUIRED, and this container has no VPN credentials: see VPN-SETUP.md; VPN_REQUIRED=0 in .env runs without VPN"
  echo "No VPN credentials provided, running without VPN"
  exec "${as_collector[@]}" "$@"
fi

killswitch ""
check_settings
remember_dns
run=$(mktemp -d /dev/shm/vpn.XXXXXX) # in memory, and root's only
collector=""
trap finish EXIT
trap terminate TERM INT
(umask 077 && printf '%s\n%s\n' "$username" "$password" >"$run/credentials")

connect_to_any
use_tunnel_dns
follow_clickhouse
[[ -n $clickhouse_address ]] || say "ClickHouse ($CLICKHOUSE_HOST) has no address yet; looking for it every 10 s"
echo "VPN connected successfully"
say "server $server, name servers ${dns[*]}"

# A proxy is a way around the tunnel, or leads nowhere: the collector is not told of any.
env -u http_proxy -u https_proxy -u all_proxy -u no_proxy -u ftp_proxy \
  -u HTTP_PROXY -u HTTPS_PROXY -u ALL_PROXY -u NO_PROXY -u FTP_PROXY "${as_collector[@]}" "$@" &
collector=$!
watch
if ! running "$collector"; then
  code=0
  wait "$collector" || code=$?
  exit "$code"
fi
say "the tunnel to $server is lost: $(reason); stopping the collector, to start again with another server"
count_failure other
exit 75
