# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# Parts stopped by an administrator, in any order, stay stopped, are not reported as failures, and serve when started.
. /checks/lib.sh
ensure_started

# One worker, under load: the others keep serving.
unit=patou-worker@default-2.service
mark=$(mark)
load_start 4
before=$(parts_except "$unit")
systemctl stop "$unit"
wait_for 3 "status shows it as stopped" worker_is default/2 stopped
# Longer than the watchdog takes for a verdict.
sleep 3
expect "$unit" "$(systemctl is-active "$unit" || true)" inactive
expect "worker 2" "$(worker_state default/2)" stopped
load_stop_without_failure "systemctl stop of a worker"
expect "the rest of the set" "$(parts_except "$unit")" "$before"
messages=$(messages_since "$mark" --priority=warning)
[ -z "$messages" ] || fail "warnings about a stopped worker: $messages"
load_start 4
systemctl start "$unit"
wait_for 5 "it serves again" worker_serves default/2
load_stop_without_failure "systemctl start of a worker"
expect "the rest of the set" "$(parts_except "$unit")" "$before"

# All workers: clients get 503, at once or after queue_timeout, and the other parts stay.
systemctl stop "${workers[@]}"
code=$(curl --silent --location --max-time 10 --output /dev/null --write-out '%{http_code}' http://127.0.0.1:7286/x || true)
expect "the status without workers" "$code" 503
systemctl start "${workers[@]}"
wait_for 10 "the set is up" all_up

# The dispatcher: its sockets stop with it, the workers stay, and status shows it as stopped.
mark=$(mark)
before=$(parts_except patou-dispatcher.service)
systemctl stop patou-dispatcher.service
expect "its socket" "$(systemctl is-active "$(listener_socket 127.0.0.1:7286)" || true)" inactive
expect_failure "a request without a dispatcher" responds_on_tcp
sleep 3
expect "patou-dispatcher.service" "$(systemctl is-active patou-dispatcher.service || true)" inactive
expect "the dispatcher" "$(patou status --json | jq -r .dispatcher.state)" stopped
expect "the rest of the set" "$(parts_except patou-dispatcher.service)" "$before"
messages=$(messages_since "$mark" --priority=warning)
[ -z "$messages" ] || fail "warnings about a stopped dispatcher: $messages"
systemctl start patou-dispatcher.service
wait_for 5 "it serves again" responds_on_tcp
wait_for 5 "on its Unix socket too" responds_on_unix
expect "the rest of the set" "$(parts_except patou-dispatcher.service)" "$before"

# The watchdog: no client is affected.
load_start 4
before=$(parts_except patou-watchdog.service)
systemctl stop patou-watchdog.service
systemctl start patou-watchdog.service
wait_for 5 "the set is up" all_up
load_stop_without_failure "systemctl stop and start of the watchdog"
expect "the rest of the set" "$(parts_except patou-watchdog.service)" "$before"

# In other orders.
order() { # STOP... -- START...
    local unit
    while [ "$1" != -- ]; do
        systemctl stop "$1" || fail "systemctl stop $1"
        shift
    done
    for unit in "${parts[@]}"; do
        expect "$unit" "$(systemctl is-active "$unit" || true)" inactive
    done
    shift
    for unit in "$@"; do
        systemctl start "$unit" || fail "systemctl start $unit"
    done
    wait_for 10 "the set is up" all_up
    responds_on_tcp || fail "not served after $*"
}
watchdog=patou-watchdog.service dispatcher=patou-dispatcher.service
order "$watchdog" "$dispatcher" "${workers[@]}" -- "${workers[@]}" "$dispatcher" "$watchdog"
order "${workers[@]}" "$dispatcher" "$watchdog" -- "$dispatcher" "${workers[@]}" "$watchdog"
order "$dispatcher" "${workers[0]}" "$watchdog" "${workers[@]:1}" -- "$watchdog" "${workers[@]:1}" "$dispatcher" "${workers[0]}"

# The dispatcher alone, whose probe.sock is another file then: the watchdog reaches it.
systemctl stop "$dispatcher"
systemctl start "$dispatcher"
wait_for 10 "the set is up" all_up
pid=$(main_pid "$dispatcher")
sleep 3
expect "the dispatcher's process after dispatcher_timeout" "$(main_pid "$dispatcher")" "$pid"

# The segments: stopping them stops every part, and a restart of the set creates them again.
systemctl stop patou-ipc.service
for unit in "${parts[@]}"; do
    expect "$unit without segments" "$(systemctl is-active "$unit" || true)" inactive
done
found=$(find /dev/shm -mindepth 1)
[ -z "$found" ] || fail "left behind: $found"
systemctl restart patou
wait_for 10 "the set is up" all_up

# The whole set, during a request: the request finishes and nothing is left behind. Then again with frozen parts.
{ base_configuration && default_pool 2 '{ exec = ["/bin/sh", "-c", "sleep 1; printf \"Content-Type: text/plain\\n\\ndone\\n\""] }'; } | configure
systemctl restart patou
wait_for 10 "the set is up" all_up
curl --silent --show-error --fail --location --max-time 10 http://127.0.0.1:7286/x >"$check_dir/response" &
client=$!
busy() { patou status --json | jq -e '[.pools[].workers[].state] | index("busy")'; }
wait_for 5 "a worker is busy" busy
t0=$(micros)
systemctl stop patou
figure "systemctl stop patou during a request of 1 s: $(millis_since "$t0") ms"
wait "$client" || fail "the request was lost"
expect "its response" "$(cat "$check_dir/response")" "done"
assert_nothing_left

configure_standard
systemctl start patou
wait_for 10 "the set is up" all_up
kill -STOP "$(main_pid patou-dispatcher)"
kill -STOP "$(main_pid patou-worker@default-1)"
t0=$(micros)
systemctl stop patou
figure "systemctl stop patou with a frozen dispatcher and worker: $(millis_since "$t0") ms"
assert_nothing_left

# At rest.
systemctl start patou
wait_for 10 "the set is up" all_up
t0=$(micros)
systemctl stop patou
figure "systemctl stop patou at rest: $(millis_since "$t0") ms"
assert_nothing_left
expect "failed units" "$(systemctl list-units --failed --plain --no-legend --no-pager)" ""
