# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# The admin socket: root reads it, others do not, and it answers while every other part is frozen.
. /checks/lib.sh
need_started

socket=/run/patou/admin.sock
ask() { curl --silent --show-error --max-time 5 --unix-socket "$socket" "http://patou/$1"; }
as() { # USER OPTION-FOR-GROUPS COMMAND...
    local user=$1 groups=$2
    shift 2
    setpriv --reuid "$user" --regid "$user" "$groups" "$@"
}
pss() { awk '$1 == "Pss:" { print $2 }' "/proc/$(main_pid patou-watchdog.service)/smaps_rollup"; }

expect "$socket" "$(stat --format '%a %U:%G' "$socket")" "660 root:root"
figure "PSS of the watchdog at rest, before anybody has asked it: $(pss) kB"
expect "/healthz" "$(ask healthz)" '{"state":"ready","reasons":[]}'
expect "/status" "$(ask status | jq --sort-keys .)" "$(patou status --json | jq --sort-keys .)"
answered_on_tcp || fail "not served"
served() { ask metrics | awk -v key="$1" '$1 == key { print $2 }'; }
ready() { [ "$(ask healthz | jq -r .state)" = ready ]; }
counted() { [ "$(served "$1")" = "$2" ]; }
# Out of the slots, which the watchdog may read and nobody else's user may.
total=$(patou status --json | jq '[.pools[0].workers[].served] | add')
((total > 0)) || fail "no request is counted"
wait_for 3 "the requests are counted" counted 'patou_requests_served_total{pool="default"}' "$total"
expect "the last line" "$(ask metrics | tail -n 1)" "# EOF"
sleep 1
figure "PSS of the watchdog after it has been asked: $(pss) kB"

# Others are refused by the file; a group that the configuration names is not.
useradd --system --no-create-home stranger 2>/dev/null || true
groupadd --system monitors 2>/dev/null || true
for user in stranger patou-worker patou; do
    expect_failure "$user reading the admin socket" as "$user" --clear-groups curl --silent --show-error --unix-socket "$socket" http://patou/healthz
done
before=$(others_than patou-watchdog.service)
{ configuration && default_pool 3 && printf '[admin]\ngroup = "monitors"\naddress = "127.0.0.1:7280"\n'; } | configure
systemctl reload patou || fail "systemctl reload patou"
expect "$socket" "$(stat --format '%a %U:%G' "$socket")" "660 root:monitors"
expect "/healthz for the group" "$(as stranger --groups=monitors curl --silent --unix-socket "$socket" http://patou/healthz | jq -r .state)" ready
expect "the other parts" "$(others_than patou-watchdog.service)" "$before"
# The unit of the watchdog has no network, but this socket.
expect "/healthz on TCP" "$(curl --silent --max-time 5 http://127.0.0.1:7280/healthz | jq -r .state)" ready
status=$(curl --silent --max-time 5 --output /dev/null --write-out '%{http_code}' --header 'Host: evil.example' http://127.0.0.1:7280/metrics)
expect "a foreign name" "$status" 421
standard
systemctl reload patou || fail "systemctl reload patou"
expect_failure "a connection to the address that went" curl --silent --max-time 5 http://127.0.0.1:7280/healthz
wait_for 5 "the set is up" all_up

# Everybody but the watchdog is frozen.
wait_for 5 "it is ready" ready
pids=()
for unit in "${parts[@]:1}"; do
    pids+=("$(main_pid "$unit")")
done
begin=$(micros)
kill -STOP "${pids[@]}"
health=$(ask healthz && ask metrics)
took=$(millis_since "$begin")
((took < 1000)) || fail "the answers took $took ms"
has -F '"state":"unavailable"' <<<"$health" || fail "healthz says: $health"
has -F 'patou_workers{pool="default",state="frozen"} 3' <<<"$health" || fail "metrics say: $health"
figure "/healthz and /metrics while dispatcher and workers are frozen: $took ms"
wait_for 10 "everybody is replaced" all_up
recovered() { counted 'patou_recovery_seconds_count{part="worker"}' 3 && counted 'patou_recovery_seconds_count{part="dispatcher"}' 1; }
for _ in {1..50}; do recovered && break; sleep 0.1; done; recovered || fail "the recoveries are not counted: $(ask metrics | grep -E "restarts_total|(detection|recovery)_seconds_(sum|count)")"
expect "restarts of the dispatcher" "$(served 'patou_restarts_total{part="dispatcher",cause="frozen"}')" 1
figure "detection of 3 workers together: $(served 'patou_detection_seconds_sum{part="worker"}') s, recovery $(served 'patou_recovery_seconds_sum{part="worker"}') s"
figure "detection of the dispatcher: $(served 'patou_detection_seconds_sum{part="dispatcher"}') s, recovery $(served 'patou_recovery_seconds_sum{part="dispatcher"}') s"

# The socket waits for a watchdog that is restarted, and goes with one that is stopped.
was=$(sockets)
kill -KILL "$(main_pid patou-watchdog.service)"
expect "/healthz while the watchdog starts" "$(ask healthz)" '{"state":"ready","reasons":[]}'
expect "the sockets" "$(sockets)" "$was"
systemctl stop patou-watchdog
wait_for 3 "the socket has gone" [ ! -e "$socket" ]
expect_failure "a question to nobody" ask healthz
expect "the watchdog" "$(systemctl is-active patou-watchdog.service || true)" inactive
systemctl start patou-watchdog
wait_for 5 "it is ready" ready
keep_set
