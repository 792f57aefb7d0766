#!/usr/bin/env bash
# Plays the collector: tries every way to the exchange, over and over, and says what it reached. The payload is "LEAK",
# so that a packet that carries it outside the tunnel can be told from OpenVPN's own.
#
# PLAY=idle only waits; PLAY=deaf does not listen to SIGTERM; PLAY=exit7 ends by itself; PLAY=environment tells it.
set -u

trap '[[ ${PLAY:-} == deaf ]] || { echo "collector: drained"; exit 0; }' TERM

try() {
  if timeout 2 bash -c "exec 3<>/dev/tcp/$1/$2 && echo LEAK >&3" 2>/dev/null; then echo "collector: reached $1"; fi
}

echo "collector: $(id -un), credentials '${NORDVPN_USER:-}${NORDVPN_PASS:-}', $(grep CapEff /proc/self/status)"
[[ ${PLAY:-} != exit7 ]] || exit 7
if [[ ${PLAY:-} == environment ]]; then
  env | sed 's/^/collector: /'
  exit
fi
while [[ ${PLAY:-} == idle ]]; do
  sleep 1 &
  wait $!
done
while true; do
  try "$EXCHANGE" 80 &
  try "$EXCHANGE6" 80 &
  try exchange.test 80 &
  try clickhouse 9000 &
  for endpoint in $ENDPOINTS; do # only OpenVPN may talk to these
    echo LEAK 2>/dev/null >"/dev/udp/$endpoint/1194"
  done
  echo LEAK 2>/dev/null >"/dev/udp/$EXCHANGE/53"
  # Docker's resolver, asked for exchange.test, would ask on from the host's address.
  printf '\0\1\1\0\0\1\0\0\0\0\0\0\10exchange\4test\0\0\1\0\1' 2>/dev/null >/dev/udp/127.0.0.11/53
  sleep 0.2 &
  wait $!
done
