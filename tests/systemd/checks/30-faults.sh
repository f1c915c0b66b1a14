# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# Every daemon is killed and frozen under load. It is replaced within the bounds of the configuration, no other part is
# touched, and only requests on that daemon are lost.
. /checks/lib.sh
ensure_started

# Bounds in seconds: detection, kill, restart, and a second for a slow machine.
worker_bound=4     # worker_timeout 1 s, abort_grace 200 ms, a start
dispatcher_bound=5 # dispatcher_timeout 2 s, abort_grace 200 ms, a start
watchdog_bound=10  # WatchdogSec=5s, TimeoutAbortSec=1s, RestartSec=100ms

# inject SIGNAL UNIT BOUND MOST: at most MOST requests of the clients may fail.
inject() {
    local signal=$1 unit=$2 bound=$3 most=$4 pid before t0 recovered response
    systemctl reset-failed 'patou*' 2>/dev/null || true # this does not test the start limit
    load_start 8
    before=$(parts_except "$unit" && sockets)
    pid=$(main_pid "$unit")
    t0=$(micros)
    kill "-$signal" "$pid"
    wait_for "$bound" "$unit is replaced after SIG$signal" replaced "$unit" "$pid"
    case $unit in
    patou-worker@*) wait_for "$bound" "$unit serves" worker_serves "$(id_of "$unit")" ;;
    esac
    recovered=$(millis_since "$t0")
    wait_for "$bound" "the set is up" all_up
    load_stop
    response=$(first_response_after "$t0")
    figure "SIG$signal of ${unit%.service}: recovered after $recovered ms, first response after $response ms, $failed of $total requests of 8 clients failed, slowest $slowest ms"
    expect "the rest of the set after SIG$signal of $unit" "$(parts_except "$unit" && sockets)" "$before"
    ((failed <= most)) || fail "SIG$signal of $unit: $failed requests failed, not at most $most (end time, exit code of curl, status, duration in s, error message): $failures"
    [ -z "$failures" ] || log "failed after SIG$signal of $unit: $failures"
}

# A worker loses at most its one request. The dispatcher loses at most the requests that it has accepted and not yet
# responded to.
inject KILL patou-worker@default-2.service "$worker_bound" 1
inject STOP patou-worker@default-2.service "$worker_bound" 1
inject KILL patou-dispatcher.service "$dispatcher_bound" 8
inject STOP patou-dispatcher.service "$dispatcher_bound" 8
inject KILL patou-watchdog.service "$watchdog_bound" 0
inject STOP patou-watchdog.service "$watchdog_bound" 0

# A part that gets SIGTERM, but not from systemd, is restarted, and its sockets stay.
inject TERM patou-worker@default-2.service "$worker_bound" 0
inject TERM patou-dispatcher.service "$dispatcher_bound" 8

# A worker whose child has left its process group: every process is killed, and the worker recovers.
{ base_configuration && default_pool 3 '{ exec = ["/bin/sh", "-c", "setsid sleep 300 & printf \"Content-Type: text/plain\\n\\n\"; exec sleep 300"] }'; } | configure
reload_handlers
for signal in KILL STOP; do
    curl --silent --location --max-time 60 --output /dev/null http://127.0.0.1:7286/x &
    client=$!
    busy() { patou status --json | jq --exit-status --raw-output '.pools[].workers[] | select(.state == "busy") | .id'; }
    wait_for 5 "a worker is busy" busy
    wait_for 5 "its handler runs" pgrep --exact sleep
    unit=patou-worker@$(busy | head -n 1 | tr / -).service
    before=$(parts_except "$unit" && sockets)
    pid=$(main_pid "$unit")
    t0=$(micros)
    kill "-$signal" "$pid"
    wait_for "$worker_bound" "$unit is replaced after SIG$signal, busy" replaced "$unit" "$pid"
    wait_for "$worker_bound" "$unit serves" worker_serves "$(id_of "$unit")"
    figure "SIG$signal of a busy worker: recovered after $(millis_since "$t0") ms"
    wait "$client" || true
    ! pgrep --list-full --exact sleep || fail "a child of the worker is left behind after SIG$signal"
    expect "the rest of the set after SIG$signal of $unit, busy" "$(parts_except "$unit" && sockets)" "$before"
done

# Without the watchdog, systemd's own is slower, at ten times the timeouts of the set. The sockets stay as well.
{ base_configuration && printf '\n[watchdog]\nprobe_interval = "100ms"\nworker_timeout = "300ms"\ndispatcher_timeout = "300ms"\n' && default_pool 3; } | configure
systemctl reload patou || fail "systemctl reload"
wait_for 10 "the set is up" all_up
systemctl stop patou-watchdog.service
before=$(sockets)
for unit in patou-worker@default-1.service patou-dispatcher.service; do
    expect "WatchdogSec= of $unit" "$(show "$unit" WatchdogUSec)" 3s
    pid=$(main_pid "$unit")
    t0=$(micros)
    kill -STOP "$pid"
    wait_for 10 "$unit is replaced without patou-watchdog" replaced "$unit" "$pid"
    log "$unit: recovered after $(millis_since "$t0") ms without patou-watchdog"
    expect "the sockets after WatchdogSec= of $unit" "$(sockets)" "$before"
done
systemctl start patou-watchdog.service
configure_standard
systemctl reload patou || fail "systemctl reload"
wait_for 10 "the set is up" all_up

# The watchdog detects a part that froze before the watchdog started, within the bounds of the set.
for unit in patou-worker@default-1.service patou-dispatcher.service; do
    systemctl stop patou-watchdog.service
    pid=$(main_pid "$unit")
    kill -STOP "$pid"
    systemctl start patou-watchdog.service
    t0=$(micros)
    wait_for "$dispatcher_bound" "$unit is replaced, frozen before the watchdog started" replaced "$unit" "$pid"
    figure "${unit%.service}, frozen before the watchdog started: recovered $(millis_since "$t0") ms after its start"
    wait_for 10 "the set is up" all_up
done
systemctl reset-failed 'patou*' 2>/dev/null || true

# A worker that freezes while the dispatcher is frozen, which may be silent for longer than the worker's bound.
{ base_configuration && printf '\n[watchdog]\ndispatcher_timeout = "60s"\n' && default_pool 3; } | configure
systemctl reload patou || fail "systemctl reload"
wait_for 10 "the set is up" all_up
unit=patou-worker@default-2.service
dispatcher=$(main_pid patou-dispatcher.service)
pid=$(main_pid "$unit")
kill -STOP "$dispatcher"
t0=$(micros)
kill -STOP "$pid"
wait_for "$worker_bound" "$unit is replaced while the dispatcher is frozen" replaced "$unit" "$pid"
figure "SIGSTOP of a worker while the dispatcher is frozen: replaced after $(millis_since "$t0") ms"
kill -CONT "$dispatcher"
wait_for 10 "the set is up" all_up
expect "the dispatcher" "$(main_pid patou-dispatcher.service)" "$dispatcher"
configure_standard
systemctl reload patou || fail "systemctl reload"
wait_for 10 "the set is up" all_up

# Every kill of a frozen part left evidence.
for pattern in 'default/2.*frozen' 'dispatcher.*frozen'; do
    journalctl --quiet --boot --identifier=patou --grep "$pattern" >/dev/null || fail "the journal has no message that matches: $pattern"
done

# A worker that exceeds watchdog.restarts stays down, and the other workers serve.
{ base_configuration && printf '\n[watchdog]\nrestarts = { max = 5, within = "60s", delay = "100ms", delay_max = "1s" }\n' && default_pool 3; } | configure
systemctl reload patou || fail "systemctl reload"
mark=$(mark)
unit=patou-worker@default-3.service
kills=0
until unit_failed "$unit"; do
    pid=$(main_pid "$unit")
    [ "$pid" = 0 ] || { kill -KILL "$pid" && kills=$((kills + 1)); } 2>/dev/null || true
    ((kills <= 7)) || fail "$unit is restarted without limit"
    wait_for 60 "$unit is restarted or has failed" replaced_or_failed "$unit" "$pid"
done
wait_for 5 "status shows it as failed" worker_is default/3 failed
log "failed after $kills kills: $(messages_since "$mark" | grep default/3 | tail -n 1)"
responds_on_tcp || fail "the other workers do not serve"
systemctl reset-failed "$unit"
systemctl start "$unit"
wait_for 5 "it serves again" worker_serves default/3
