# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# What an administrator stops stays stopped, is not called a failure, and comes back when it is started; in any order.
. /checks/lib.sh
need_started

# One worker, under load: the others serve on.
unit=patou-worker@default-2.service
mark=$(mark)
loop_curl 4
before=$(others_than "$unit")
systemctl stop "$unit"
wait_for 3 "status calls it stopped" worker_is default/2 stopped
# Longer than the watchdog needs for a verdict.
sleep 3
expect "$unit" "$(systemctl is-active "$unit" || true)" inactive
expect "worker 2" "$(worker_state default/2)" stopped
no_request_failed "systemctl stop of a worker"
expect "the rest of the set" "$(others_than "$unit")" "$before"
words=$(words_since "$mark" --priority=warning)
[ -z "$words" ] || fail "a stopped worker is complained about: $words"
loop_curl 4
systemctl start "$unit"
wait_for 5 "it is back" worker_serves default/2
no_request_failed "systemctl start of a worker"
expect "the rest of the set" "$(others_than "$unit")" "$before"

# All workers: clients hear that there is none, at once or after queue_timeout, and the rest stays.
systemctl stop "${workers[@]}"
code=$(curl --silent --location --max-time 10 --output /dev/null --write-out '%{http_code}' http://127.0.0.1:7286/x || true)
expect "the answer without workers" "$code" 503
systemctl start "${workers[@]}"
wait_for 10 "the set is up" all_up

# The dispatcher: its sockets go with it, the workers stay, the watchdog calls it stopped.
mark=$(mark)
before=$(others_than patou-dispatcher.service)
systemctl stop patou-dispatcher.service
expect "its socket" "$(systemctl is-active patou-listener@0.socket || true)" inactive
expect_failure "a request without dispatcher" answered_on_tcp
sleep 3
expect "patou-dispatcher.service" "$(systemctl is-active patou-dispatcher.service || true)" inactive
expect "the dispatcher" "$(patou status --json | jq -r .dispatcher.state)" stopped
expect "the rest of the set" "$(others_than patou-dispatcher.service)" "$before"
words=$(words_since "$mark" --priority=warning)
[ -z "$words" ] || fail "a stopped dispatcher is complained about: $words"
systemctl start patou-dispatcher.service
wait_for 5 "it serves again" answered_on_tcp
wait_for 5 "on its Unix socket too" answered
expect "the rest of the set" "$(others_than patou-dispatcher.service)" "$before"

# The watchdog: nobody notices.
loop_curl 4
before=$(others_than patou-watchdog.service)
systemctl stop patou-watchdog.service
systemctl start patou-watchdog.service
wait_for 5 "the set is up" all_up
no_request_failed "systemctl stop and start of the watchdog"
expect "the rest of the set" "$(others_than patou-watchdog.service)" "$before"

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
    answered_on_tcp || fail "not served after $*"
}
watchdog=patou-watchdog.service dispatcher=patou-dispatcher.service
order "$watchdog" "$dispatcher" "${workers[@]}" -- "${workers[@]}" "$dispatcher" "$watchdog"
order "${workers[@]}" "$dispatcher" "$watchdog" -- "$dispatcher" "${workers[@]}" "$watchdog"
order "$dispatcher" "${workers[0]}" "$watchdog" "${workers[@]:1}" -- "$watchdog" "${workers[@]:1}" "$dispatcher" "${workers[0]}"

# The segments: everybody goes with them, and they come back with everybody.
systemctl stop patou-ipc.service
for unit in "${parts[@]}"; do
    expect "$unit without segments" "$(systemctl is-active "$unit" || true)" inactive
done
found=$(find /dev/shm -mindepth 1)
[ -z "$found" ] || fail "left: $found"
systemctl restart patou
wait_for 10 "the set is up" all_up

# The whole set, with a request in hand: it is finished, and nothing is left. Twice, the second time with a frozen part.
{ configuration && default_pool 2 '{ exec = ["/bin/sh", "-c", "sleep 1; printf \"Content-Type: text/plain\\n\\ndone\\n\""] }'; } | configure
systemctl restart patou
wait_for 10 "the set is up" all_up
curl --silent --fail --location --max-time 10 http://127.0.0.1:7286/x >"$check_dir/answer" &
client=$!
busy() { patou status --json | jq -e '[.pools[].workers[].state] | index("busy")'; }
wait_for 5 "a worker is busy" busy
begin=$(micros)
systemctl stop patou
figure "systemctl stop patou with a request of 1 s in hand: $(millis_since "$begin") ms"
wait "$client" || fail "the request in hand was lost"
expect "its answer" "$(cat "$check_dir/answer")" "done"
nothing_is_left

standard
systemctl start patou
wait_for 10 "the set is up" all_up
kill -STOP "$(main_pid patou-dispatcher)"
kill -STOP "$(main_pid patou-worker@default-1)"
begin=$(micros)
systemctl stop patou
figure "systemctl stop patou with a frozen dispatcher and worker: $(millis_since "$begin") ms"
nothing_is_left

# At rest.
systemctl start patou
wait_for 10 "the set is up" all_up
begin=$(micros)
systemctl stop patou
figure "systemctl stop patou at rest: $(millis_since "$begin") ms"
nothing_is_left
expect "failed units" "$(systemctl list-units --failed --plain --no-legend --no-pager)" ""
