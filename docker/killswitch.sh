# shellcheck shell=bash disable=SC2034,SC2154 # variables are shared with entrypoint.sh and its other parts
# The kill switch: what may leave and enter this container, from before its first packet until it ends.
#
# nftables and not iptables: one table covers IPv4 and IPv6, and a change of rules is one transaction, so there is no
# moment between two sets of rules. The table is this script's own; Docker's rules (for its DNS) are left alone.

readonly TUNNEL=tun0

root_rule=""
clickhouse_address=""
clickhouse_subnet=""

# killswitch [RULE]: replace the rules. RULE is what root, besides, may send outside the tunnel, as nft writes it.
# No rule for leaving looks at "established": a connection made through the tunnel must not go on without it.
# The collector's metrics answer those who ask from ClickHouse's network, and never through the tunnel.
# Rules that cannot be loaded end everything: with credentials, nothing ever runs unprotected.
killswitch() {
  root_rule=$1
  local clickhouse_rule="" metrics_rule="" metrics_answer=""
  if [[ -n $clickhouse_subnet ]]; then
    clickhouse_rule="ip daddr $clickhouse_subnet tcp dport ${CLICKHOUSE_PORT:-9000} accept"
    if ((${METRICS_PORT:-0})); then
      metrics_rule="iifname != \"$TUNNEL\" ip saddr $clickhouse_subnet tcp dport $METRICS_PORT accept"
      metrics_answer="ip daddr $clickhouse_subnet tcp sport $METRICS_PORT ct direction reply accept"
    fi
  fi
  nft -f - <<RULES || die "no kill switch, so no collector: the rules cannot be loaded (cap_add: NET_ADMIN is needed)"
table inet vpn
delete table inet vpn
table inet vpn {
  chain input {
    type filter hook input priority 0; policy drop;
    iifname "lo" accept
    ct state established,related accept
    $metrics_rule
  }
  chain forward {
    type filter hook forward priority 0; policy drop;
  }
  chain output {
    type filter hook output priority 0; policy drop;
    # Docker's resolver would ask on the collector's behalf, but from the host's address.
    meta skuid != 0 ip daddr 127.0.0.11 drop
    oifname { "lo", "$TUNNEL" } accept
    $clickhouse_rule
    $metrics_answer
    $root_rule
  }
}
RULES
}

# follow_clickhouse: let the collector find and reach ClickHouse. Docker's resolver knows its address but is closed to
# the collector, so the address goes into /etc/hosts, and its network into the rules. ClickHouse may come back from a
# restart with another address: this is called again and again.
follow_clickhouse() {
  local name=${CLICKHOUSE_HOST:-127.0.0.1} address hosts
  address=$name
  if ! is_ipv4 "$name"; then
    address=$(parse address "$name" "$container_dns" 2>/dev/null) || return 0
  fi
  [[ $address != "$clickhouse_address" ]] || return 0
  clickhouse_address=$address
  if [[ $address != "$name" ]]; then
    hosts=$(grep -v '# ClickHouse$' /etc/hosts || true)
    printf '%s\n%s %s # ClickHouse\n' "$hosts" "$address" "$name" >/etc/hosts # in place: Docker mounts this file
  fi
  clickhouse_subnet=$(ip -4 route show match "$address" scope link proto kernel |
    awk -v tunnel="$TUNNEL" '$3 != tunnel { print $1; exit }')
  killswitch "$root_rule"
  say "ClickHouse is at $address, network ${clickhouse_subnet:-not connected directly, so nothing was opened for it}"
}
