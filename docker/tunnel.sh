# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with entrypoint.sh and its other parts
# OpenVPN: start it, see whether the tunnel carries everything, keep it honest, say why it ended.

readonly LOG=/tmp/openvpn.log
readonly CONNECT_SECONDS=40 # longer than OpenVPN needs to find a server mute

openvpn="" # its process id

# connect: start OpenVPN to the chosen server. Returns when all traffic goes through the tunnel, or 1 if it will not.
connect() {
  local deadline=$((SECONDS + CONNECT_SECONDS)) options=()
  [[ $protocol == tcp ]] || options=(--explicit-exit-notify 1) # frees the session at NordVPN at once
  [[ -z $username ]] || options+=(--auth-user-pass "$run/credentials" --auth-nocache --auth-retry none)
  [[ ! -e $LOG ]] || mv "$LOG" "$LOG.1"
  # Whatever goes wrong ends OpenVPN (remap-usr1, ping-exit): it never reconnects behind our back. The server's own
  # ping settings (60 and 180 s) would notice its death too late. disable-dco: with packets sent by the kernel, the
  # kill switch could not see that they are root's.
  openvpn --cd "$(dirname "${VPN_CONFIG:-$run/client.ovpn}")" --config "$run/client.ovpn" \
    --remote "$address" "$port" "${protocol/tcp/tcp-client}" --nobind --dev "$TUNNEL" --dev-type tun --disable-dco \
    --data-ciphers AES-256-GCM:AES-128-GCM:CHACHA20-POLY1305:AES-256-CBC --data-ciphers-fallback AES-256-CBC \
    --ping 5 --ping-exit 20 --remap-usr1 SIGTERM \
    --pull-filter ignore ping --pull-filter ignore ifconfig-ipv6 --pull-filter ignore route-ipv6 \
    --redirect-gateway def1 --script-security 0 --verb 3 "${options[@]}" --log "$LOG" >"$run/said" 2>&1 &
  openvpn=$!
  until grep -qs 'Initialization Sequence Completed' "$LOG" && tunnel_up; do
    if ! running "$openvpn" || ((SECONDS > deadline)); then
      stop "$openvpn" 3
      openvpn=""
      check_options
      return 1
    fi
    pause 0.5
  done
}

# check_options: if the configuration is what ended OpenVPN, say so in its own words, and end: the next attempt would end
# the same way. What it does not understand, it complains about before it opens its log.
check_options() {
  local words
  words=$(grep -hs '^Options error:' "$LOG") || words=""
  [[ -e $LOG ]] || words=$(grep -v '^Use --help' "$run/said") || words="OpenVPN does not start"
  [[ -z $words ]] || die "$server: the configuration cannot be used: ${words//$'\n'/ }"
}

# interface_to ADDRESS: the one that its packets would leave by; nothing if there is none.
interface_to() {
  ip -4 route get "$1" 2>/dev/null | sed -n 's/.* dev \([^ ]*\) .*/\1/p'
}

# tunnel_up: both halves of the address space go through the tunnel, and its packets to the server go outside it.
# An interface that is down or gone takes its routes with it.
tunnel_up() {
  local low high outside
  low=$(interface_to 1.0.0.1) && high=$(interface_to 129.0.0.1) && outside=$(interface_to "$address") &&
    [[ $low == "$TUNNEL" && $high == "$TUNNEL" && $outside != "$TUNNEL" ]]
}

refused() {
  grep -qs AUTH_FAILED "$LOG"
}

# reason: OpenVPN's own last word on what went wrong.
reason() {
  if [[ -n $openvpn ]] && running "$openvpn"; then
    echo "its interface or its routes are gone"
  else
    tail -n 15 "$LOG" | cut -c 21- | grep -v 'Exiting due to fatal error' | grep -E '[Ee]rror|fail|timeout|reset|Cannot' | tail -n 1 || echo "see $LOG"
  fi
}

# use_tunnel_dns: send all name look-ups through the tunnel, to VPN_DNS, or to whom the server names, or to NordVPN's.
use_tunnel_dns() {
  local pushed
  pushed=$(grep -o 'dhcp-option DNS [0-9.]*' "$LOG" | cut -d ' ' -f 3 | sort -u) || true
  IFS=$', \n' read -r -d '' -a dns <<<"${VPN_DNS:-${pushed:-103.86.96.100 103.86.99.100}}" || true
  {
    echo "# VPN"
    printf 'nameserver %s\n' "${dns[@]}"
    echo "options timeout:2 attempts:3"
  } >/etc/resolv.conf # in place: Docker mounts this file
}

# knock: ask the name server for the root's name servers, without waiting for the answer. OpenVPN's pings are not
# answered, and NordVPN's servers send their own only once a minute: without this, ping-exit would end an idle tunnel.
knock() {
  printf '\0\1\1\0\0\1\0\0\0\0\0\0\0\0\2\0\1' 2>/dev/null >"/dev/udp/${dns[0]}/53" || true
}
