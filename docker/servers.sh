# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with entrypoint.sh and its other parts
# Which server to try next, how to reach it, and when.
#
# Servers come from NordVPN's API and download site, or from VPN_CONFIG. The cache, best on a volume that all clients
# share, keeps the last good answers, when each server last failed, and a lock on each server that is in use.

readonly API_URL=${NORDVPN_API_URL:-https://api.nordvpn.com}
readonly CONFIG_URL=${NORDVPN_CONFIG_URL:-https://downloads.nordcdn.com/configs/files}
COUNTRY=${VPN_COUNTRY:-us}
COUNTRY=${COUNTRY,,}
readonly COUNTRY=${COUNTRY/#gb/uk} # the United Kingdom is GB, but NordVPN's servers are uk1234
readonly PROTOCOL=${VPN_PROTOCOL:-udp}
readonly CACHE=${VPN_CACHE_DIR:-/var/cache/vpn}
readonly FRESH_MINUTES=10 # NordVPN is asked again only for what is older
readonly FORGET_SECONDS=3600 # after this long a failed server is as good as any other

# Seconds from a failure to the next attempt, by the number of failures in a row. Refused credentials wait longer:
# NordVPN counts sessions, and asking again prolongs its ban.
readonly AUTH_DELAYS=(5 15 60 120 300 600)
readonly OTHER_DELAYS=(2 5 10 20 40 60)

server=""  # its name, as messages give it
address="" # what OpenVPN connects to, with port and protocol
port=""
protocol=""
candidate="" # its name in the cache
lock=""

# choose_server: set the variables above, and put the configuration into $run/client.ovpn. Returns 1 if there is none.
# The first in NordVPN's order that did not fail lately and that no other client uses, or else the longest-failed one.
choose_server() {
  server="" candidate=""
  if [[ -n ${VPN_CONFIG:-} ]]; then
    read_config "$VPN_CONFIG" || return 1
    read -r candidate < <(by_failure <"$run/remotes")
    read -r server port protocol <<<"$candidate"
    address=$server
  else
    choose_nordvpn_server || return 1
    server=$candidate
    read -r address port protocol <"$run/remotes"
  fi
  if ! is_ipv4 "$address"; then
    address=$(getent ahostsv4 "$address" | awk '{ print $1; exit }') || true
    is_ipv4 "$address" || { say "the address of $server cannot be looked up" && return 1; }
  fi
}

choose_nordvpn_server() {
  local name id list file query
  if [[ -n ${VPN_SERVER:-} ]]; then
    candidate=${VPN_SERVER%.nordvpn.com}.nordvpn.com
  else
    case $COUNTRY in
      us) id=228 ;;
      uk) id=227 ;;
      ca) id=38 ;;
      *)
        list=$CACHE/countries.json
        fetch "$API_URL/v1/servers/countries" "$list" parse country "$COUNTRY" || return 1
        id=$(parse country "$COUNTRY" <"$list")
        ;;
    esac
    list=$CACHE/servers-$COUNTRY-$PROTOCOL.json
    query="filters[country_id]=$id&filters[servers_technologies][identifier]=openvpn_$PROTOCOL&limit=20"
    fetch "$API_URL/v1/servers/recommendations?$query" "$list" parse servers "$COUNTRY" || return 1
    while read -r name; do
      if claim "$name"; then
        candidate=$name
        break
      fi
    done < <(parse servers "$COUNTRY" <"$list" | by_failure)
    [[ -n $candidate ]] || { say "all servers in NordVPN's list are in use by other clients" && return 1; }
  fi
  file=$CACHE/configs/$candidate.$PROTOCOL.ovpn
  fetch "$CONFIG_URL/ovpn_$PROTOCOL/servers/$candidate.$PROTOCOL.ovpn" "$file" parse config /dev/null || return 1
  read_config "$file"
}

# claim NAME: lock the server, and unlock the one before; fails if another client holds it. NordVPN does not serve two
# devices of one account on one server with the same protocol. The lock ends with the processes that inherit it.
claim() {
  [[ -z $lock ]] || exec {lock}>&-
  exec {lock}>"$CACHE/in-use/$1.$PROTOCOL"
  flock --nonblock "$lock"
}

# fetch URL FILE CHECK...: bring FILE up to date. What CHECK, with the answer as its input, refuses is not kept. If
# there is no good answer, an older FILE serves.
fetch() {
  local url=$1 file=$2 new problem
  shift 2
  [[ -z $(find "$file" -mmin "-$FRESH_MINUTES" 2>/dev/null) ]] || return 0
  new=$(mktemp "$CACHE/new.XXXXXX")
  if problem=$(curl --globoff --silent --show-error --fail --location --proto "=${url%%:*}" --max-time 15 \
    --max-filesize 10000000 --output "$new" "$url" 2>&1) && problem=$("$@" 2>&1 >/dev/null <"$new"); then
    mv "$new" "$file"
    return
  fi
  rm "$new"
  if [[ ! -e $file ]]; then
    say "${url%%\?*}: $problem"
    return 1
  fi
  say "${url%%\?*}: $problem; using the answer of $(date -r "$file" '+%F %R')"
}

# read_config FILE: split it into $run/remotes, a line "host port protocol" each, and $run/client.ovpn, all the rest.
read_config() {
  local note status=0
  note=$(parse config "$run/client.ovpn" 2>&1 >"$run/remotes" <"$1") || status=1
  [[ -z $note ]] || say "$1: $note"
  return "$status"
}

# by_failure: sort lines of candidates, those that failed within FORGET_SECONDS last, the longest ago first.
by_failure() {
  local name at
  while read -r name; do
    at=$(cat "$CACHE/failed/${name// /:}" 2>/dev/null) || at=0
    ((EPOCHSECONDS - at < FORGET_SECONDS)) || at=0
    printf '%s %s\n' "$at" "$name"
  done | sort --stable --numeric-sort --key=1,1 | cut -d ' ' -f 2-
}

# count_failure KIND: remember that the candidate (if any) failed, and one more failure, "auth" or "other", in a row.
# The count survives a restart of the container, so that this cannot make the retries faster.
count_failure() {
  local count=0 at
  [[ -z $candidate ]] || echo "$EPOCHSECONDS" >"$CACHE/failed/${candidate// /:}"
  [[ ! -e $STATE/$1 ]] || read -r count at <"$STATE/$1"
  echo "$((count + 1)) $EPOCHSECONDS" >"$STATE/$1"
}

forget_failures() {
  rm -f "$STATE/auth" "$STATE/other"
}

# delay KIND COUNT: seconds to wait after that many failures of the kind.
delay() {
  local -n delays=${1^^}_DELAYS
  local last=$((${#delays[@]} - 1)) index=$(($2 - 1))
  echo "${delays[index < last ? index : last]}"
}

# wait_turn: wait as long as the failures so far demand.
wait_turn() {
  local kind count at wait longest=0
  for kind in auth other; do
    [[ -e $STATE/$kind ]] || continue
    read -r count at <"$STATE/$kind"
    ((at <= EPOCHSECONDS)) || at=$EPOCHSECONDS # the clock was put back
    wait=$(($(delay "$kind" "$count") - (EPOCHSECONDS - at)))
    ((wait <= longest)) || longest=$wait
  done
  ((longest > 0)) || return 0
  say "trying again in $longest s"
  pause "$longest"
}
