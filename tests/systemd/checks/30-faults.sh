# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# Every daemon is killed and frozen, while clients come. It is replaced within the bounds of the configuration, nothing
# else is touched, and no more is lost than what was in its hands.
. /checks/lib.sh
need_started

# What may take so long: being noticed and killed, and a second for the machine's own pace.
worker_bound=4     # worker_timeout 1 s, abort_grace 200 ms, a start
dispatcher_bound=5 # dispatcher_timeout 2 s, abort_grace 200 ms, a start
watchdog_bound=10  # WatchdogSec=5s, TimeoutAbortSec=1s, RestartSec=100ms

# strike SIGNAL UNIT BOUND MOST: of the clients' requests at most MOST may fail.
strike() {
    local signal=$1 unit=$2 bound=$3 most=$4 pid before begin healed answer
    systemctl reset-failed 'patou*' 2>/dev/null || true # the limit of restarts is not what is tested here
    loop_curl 8
    before=$(others_than "$unit" && sockets)
    pid=$(main_pid "$unit")
    begin=$(micros)
    kill "-$signal" "$pid"
    wait_for "$bound" "$unit is replaced after SIG$signal" replaced "$unit" "$pid"
    case $unit in
    patou-worker@*) wait_for "$bound" "$unit serves" worker_serves "$(id_of "$unit")" ;;
    esac
    healed=$(millis_since "$begin")
    wait_for "$bound" "the set is up" all_up
    load_stop
    answer=$(first_answer_after "$begin")
    figure "SIG$signal of ${unit%.service}: back after $healed ms, first answered request after $answer ms, $failed of $total requests of 8 clients failed, slowest $slowest ms"
    expect "the rest of the set after SIG$signal of $unit" "$(others_than "$unit" && sockets)" "$before"
    ((failed <= most)) || fail "SIG$signal of $unit: $failed requests failed, not at most $most (end, curl's code, status, seconds, words): $failures"
    [ -z "$failures" ] || say "failed after SIG$signal of $unit: $failures"
}

# A worker takes at most its one request with it. The dispatcher at most those that it has accepted and not answered.
strike KILL patou-worker@default-2.service "$worker_bound" 1
strike STOP patou-worker@default-2.service "$worker_bound" 1
strike KILL patou-dispatcher.service "$dispatcher_bound" 8
strike STOP patou-dispatcher.service "$dispatcher_bound" 8
strike KILL patou-watchdog.service "$watchdog_bound" 0
strike STOP patou-watchdog.service "$watchdog_bound" 0

# Told to go by somebody else than systemd, a part is started again, and its sockets stay.
strike TERM patou-worker@default-2.service "$worker_bound" 0
strike TERM patou-dispatcher.service "$dispatcher_bound" 8

# A worker with a child at work, that has left its process group: all of it goes, and the worker comes back.
{ configuration && default_pool 3 '{ exec = ["/bin/sh", "-c", "setsid sleep 300 & printf \"Content-Type: text/plain\\n\\n\"; exec sleep 300"] }'; } | configure
systemctl reload patou || fail "systemctl reload"
wait_for 10 "the set is up" all_up
for signal in KILL STOP; do
    curl --silent --location --max-time 60 --output /dev/null http://127.0.0.1:7286/x &
    client=$!
    busy() { patou status --json | jq --exit-status --raw-output '.pools[].workers[] | select(.state == "busy") | .id'; }
    wait_for 5 "a worker is busy" busy
    wait_for 5 "its handler works" pgrep --exact sleep
    unit=patou-worker@$(busy | head -n 1 | tr / -).service
    before=$(others_than "$unit" && sockets)
    pid=$(main_pid "$unit")
    begin=$(micros)
    kill "-$signal" "$pid"
    wait_for "$worker_bound" "$unit is replaced after SIG$signal, busy" replaced "$unit" "$pid"
    wait_for "$worker_bound" "$unit serves" worker_serves "$(id_of "$unit")"
    figure "SIG$signal of a busy worker: back after $(millis_since "$begin") ms"
    wait "$client" || true
    ! pgrep --list-full --exact sleep || fail "what it started is left after SIG$signal"
    expect "the rest of the set after SIG$signal of $unit, busy" "$(others_than "$unit" && sockets)" "$before"
done

# Without the watchdog there is systemd's own, slower: ten times the bounds of the set. Its sockets stay as well.
{ configuration && printf '\n[watchdog]\nprobe_interval = "100ms"\nworker_timeout = "300ms"\ndispatcher_timeout = "300ms"\n' && default_pool 3; } | configure
systemctl reload patou || fail "systemctl reload"
wait_for 10 "the set is up" all_up
systemctl stop patou-watchdog.service
before=$(sockets)
for unit in patou-worker@default-1.service patou-dispatcher.service; do
    expect "WatchdogSec= of $unit" "$(show "$unit" WatchdogUSec)" 3s
    pid=$(main_pid "$unit")
    begin=$(micros)
    kill -STOP "$pid"
    wait_for 10 "$unit is replaced without patou-watchdog" replaced "$unit" "$pid"
    say "$unit: back after $(millis_since "$begin") ms without patou-watchdog"
    expect "the sockets after WatchdogSec= of $unit" "$(sockets)" "$before"
done
systemctl start patou-watchdog.service
standard
systemctl reload patou || fail "systemctl reload"
wait_for 10 "the set is up" all_up

# Who froze before the watchdog came is found by it, within the bounds of the set and not those of systemd.
for unit in patou-worker@default-1.service patou-dispatcher.service; do
    systemctl stop patou-watchdog.service
    pid=$(main_pid "$unit")
    kill -STOP "$pid"
    systemctl start patou-watchdog.service
    begin=$(micros)
    wait_for "$dispatcher_bound" "$unit is replaced, frozen before the watchdog came" replaced "$unit" "$pid"
    figure "${unit%.service}, frozen before the watchdog came: back $(millis_since "$begin") ms after it"
    wait_for 10 "the set is up" all_up
done
systemctl reset-failed 'patou*' 2>/dev/null || true

# Every kill of something frozen has left its evidence.
for words in 'default/2.*frozen' 'dispatcher.*frozen'; do
    journalctl --quiet --boot --identifier=patou --grep "$words" >/dev/null || fail "the journal says nothing of: $words"
done

# A worker that cannot live is given up by systemd after watchdog.restarts, and the others serve.
{ configuration && printf '\n[watchdog]\nrestarts = { max = 5, within = "60s", delay = "100ms", delay_max = "1s" }\n' && default_pool 3; } | configure
systemctl reload patou || fail "systemctl reload"
mark=$(mark)
unit=patou-worker@default-3.service
kills=0
until given_up "$unit"; do
    pid=$(main_pid "$unit")
    [ "$pid" = 0 ] || { kill -KILL "$pid" && kills=$((kills + 1)); } 2>/dev/null || true
    ((kills <= 6)) || fail "$unit is started again for ever"
    wait_for 60 "$unit is started again or given up" replaced_or_given_up "$unit" "$pid"
done
wait_for 5 "status calls it failed" worker_is default/3 failed
say "given up after $kills kills: $(words_since "$mark" | grep default/3 | tail -n 1)"
answered_on_tcp || fail "the others do not serve"
systemctl reset-failed "$unit"
systemctl start "$unit"
wait_for 5 "it is back" worker_serves default/3
