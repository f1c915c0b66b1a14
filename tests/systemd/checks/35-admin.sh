# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# The admin socket: only root can read it, and the watchdog responds while every other part is frozen.
. /checks/lib.sh
ensure_started

socket=/run/patou/admin.sock
get() { curl --silent --show-error --max-time 5 --unix-socket "$socket" "http://patou/$1"; }
run_as() { # USER GROUP-OPTION COMMAND...
    local user=$1 groups=$2
    shift 2
    setpriv --reuid "$user" --regid "$user" "$groups" "$@"
}
pss() { awk '$1 == "Pss:" { print $2 }' "/proc/$(main_pid patou-watchdog.service)/smaps_rollup"; }

expect "$socket" "$(stat --format '%a %U:%G' "$socket")" "660 root:root"
figure "PSS of the watchdog at rest, before the first request to it: $(pss) kB"
expect "/healthz" "$(get healthz)" '{"state":"ready","reasons":[]}'
expect "/status" "$(get status | jq --sort-keys .)" "$(patou status --json | jq --sort-keys .)"
responds_on_tcp || fail "not served"
metric() { get metrics | awk -v key="$1" '$1 == key { print $2 }'; }
ready() { [ "$(get healthz | jq -r .state)" = ready ]; }
counted() { [ "$(metric "$1")" = "$2" ]; }
# From the slots, which no other user may read.
total=$(patou status --json | jq '[.pools[0].workers[].served] | add')
((total > 0)) || fail "no request was counted"
wait_for 3 "the requests are counted" counted 'patou_requests_served_total{pool="default"}' "$total"
expect "the last line" "$(get metrics | tail -n 1)" "# EOF"
sleep 1
figure "PSS of the watchdog after requests to it: $(pss) kB"

# The mode of the socket refuses other users, except a group that the configuration names.
useradd --system --no-create-home stranger 2>/dev/null || true
groupadd --system monitors 2>/dev/null || true
for user in stranger patou-worker patou; do
    expect_failure "$user reading the admin socket" run_as "$user" --clear-groups curl --silent --show-error --unix-socket "$socket" http://patou/healthz
done
before=$(parts_except patou-watchdog.service)
{ base_configuration && default_pool 3 && printf '[admin]\ngroup = "monitors"\naddress = "127.0.0.1:7280"\n'; } | configure
systemctl reload patou || fail "systemctl reload patou"
expect "$socket" "$(stat --format '%a %U:%G' "$socket")" "660 root:monitors"
expect "/healthz for the group" "$(run_as stranger --groups=monitors curl --silent --unix-socket "$socket" http://patou/healthz | jq -r .state)" ready
expect "the other parts" "$(parts_except patou-watchdog.service)" "$before"
# The watchdog's unit has a private network; it serves TCP on the socket that systemd passes to it.
expect "/healthz on TCP" "$(curl --silent --max-time 5 http://127.0.0.1:7280/healthz | jq -r .state)" ready
status=$(curl --silent --max-time 5 --output /dev/null --write-out '%{http_code}' --header 'Host: evil.example' http://127.0.0.1:7280/metrics)
expect "the status for a foreign host name" "$status" 421
configure_standard
systemctl reload patou || fail "systemctl reload patou"
expect_failure "a connection to the removed address" curl --silent --max-time 5 http://127.0.0.1:7280/healthz
wait_for 5 "the set is up" all_up

# Every part except the watchdog is frozen.
wait_for 5 "it is ready" ready
pids=()
for unit in "${parts[@]:1}"; do
    pids+=("$(main_pid "$unit")")
done
t0=$(micros)
kill -STOP "${pids[@]}"
health=$(get healthz && get metrics)
took=$(millis_since "$t0")
((took < 1000)) || fail "the responses took $took ms"
has -F '"state":"unavailable"' <<<"$health" || fail "healthz is: $health"
has -F 'patou_workers{pool="default",state="frozen"} 3' <<<"$health" || fail "metrics are: $health"
figure "/healthz and /metrics while dispatcher and workers are frozen: $took ms"
wait_for 10 "every part is replaced" all_up
recovered() { counted 'patou_recovery_seconds_count{part="worker"}' 3 && counted 'patou_recovery_seconds_count{part="dispatcher"}' 1; }
for _ in {1..50}; do recovered && break; sleep 0.1; done; recovered || fail "the recoveries are not counted: $(get metrics | grep -E "restarts_total|(detection|recovery)_seconds_(sum|count)")"
expect "detections of frozen workers" "$(metric 'patou_detection_seconds_count{part="worker"}')" 3
expect "restarts of the dispatcher" "$(metric 'patou_restarts_total{part="dispatcher",cause="frozen"}')" 1
figure "detection of 3 workers together: $(metric 'patou_detection_seconds_sum{part="worker"}') s, recovery $(metric 'patou_recovery_seconds_sum{part="worker"}') s"
figure "detection of the dispatcher: $(metric 'patou_detection_seconds_sum{part="dispatcher"}') s, recovery $(metric 'patou_recovery_seconds_sum{part="dispatcher"}') s"

# The socket stays while the watchdog restarts, and is removed when the watchdog is stopped.
before=$(sockets)
kill -KILL "$(main_pid patou-watchdog.service)"
expect "/healthz while the watchdog starts" "$(get healthz)" '{"state":"ready","reasons":[]}'
expect "the sockets" "$(sockets)" "$before"
systemctl stop patou-watchdog
wait_for 3 "the socket is removed" [ ! -e "$socket" ]
expect_failure "a request without a watchdog" get healthz
expect "the watchdog" "$(systemctl is-active patou-watchdog.service || true)" inactive
systemctl start patou-watchdog
wait_for 5 "it is ready" ready
mark_set_standard
