# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# A part that keeps dying, also before it is ready, is restarted with growing delays and then given up; the start of the
# set and the rest of it are not affected, and planned restarts do not count.
. /checks/lib.sh
ensure_started

# $1: what the program of the second pool does.
with_second_pool() {
    base_configuration
    printf '\n[watchdog]\nrestarts = { max = 2, within = "10m", delay = "100ms", delay_max = "800ms" }\n'
    default_pool 3
    printf '[[listener]]\naddress = "127.0.0.1:7287"\npool = "bad"\n'
    printf '[[pool]]\nname = "bad"\nworkers = 1\nhandler = { program = ["/bin/sh", "-c", "%s"] }\naddress = "127.0.0.1:7400"\n' "$1"
}
bad=patou-worker@bad-1
starts_of_bad() { journalctl --quiet --boot --unit="$bad.service" --output=cat | grep --count '^Starting ' || true; }

# Restarts 0, 100, 200, 400 and 800 ms after the deaths, each less by a quarter at most, and none after that.
systemctl stop patou
with_second_pool 'exit 3' | configure
mark=$(mark)
before=$(starts_of_bad)
t0=$(micros)
systemctl start patou || fail "systemctl start patou with a pool whose program exits at once"
log "systemctl start patou took $(millis_since "$t0") ms"
responds_on_tcp || fail "the other pool does not serve"
wait_for 20 "the worker is given up" unit_failed "$bad.service"
took=$(millis_since "$t0")
((took >= 1125)) || fail "given up after $took ms, before its delays have passed"
expect "the starts of a worker that dies at once" "$(($(starts_of_bad) - before))" 7 # the last one gives up
figure "a worker that dies before it is ready is given up after 6 failures in $took ms"
wait_for 5 "its address is closed" is_inactive "$bad.socket"
wait_for 5 "status shows it" worker_is bad/1 failed
wait_for 5 "status says why" status_has 'given up: it failed 6 times in a row'
wait_for 5 "the log says it" log_has "$mark" 'worker bad/1 has failed (given up'
expect "patou.service" "$(systemctl is-active patou)" active
responds_on_tcp || fail "the other pool does not serve"

# A reload starts it again, as the first of a new series.
before=$(starts_of_bad)
systemctl reload patou || fail "systemctl reload patou"
wait_for 20 "the worker is given up once more" unit_failed "$bad.service"
expect "the starts after a reload" "$(($(starts_of_bad) - before))" 7

# A stop during the delay takes no time, and the next start does not wait.
with_second_pool 'test -e /run/patou-ok && exec /usr/bin/sleep 1000; exit 3' | sed 's/"800ms"/"60s"/;s/"100ms"/"50s"/' | configure
systemctl reload patou || fail "systemctl reload patou"
wait_for 10 "the third start waits" log_has "$mark" 'waiting before it is ready'
wait_for 10 "it waits" is_activating "$bad.service"
t0=$(micros)
systemctl stop "$bad.service" || fail "systemctl stop"
took=$(millis_since "$t0")
((took < 5000)) || fail "a stop during the delay took $took ms"

# The watchdog delays its own starts as well.
configure_standard
systemctl restart patou || fail "systemctl restart patou"
wait_for 20 "the set is up" all_up
mark=$(mark)
for _ in 1 2 3; do
    pid=$(main_pid patou-watchdog.service)
    kill -KILL "$pid"
    wait_for 10 "the watchdog is replaced" replaced patou-watchdog.service "$pid"
done
messages_since "$mark" --unit=patou-watchdog.service | has 'waiting before it is ready' || fail "the watchdog does not wait"
wait_for 20 "the set is up" all_up

# Planned restarts neither count nor wait.
mark=$(mark)
for _ in {1..20}; do
    systemctl restart patou-worker@default-2.service patou-dispatcher.service || fail "a planned restart"
done
! messages_since "$mark" | has 'waiting before it is ready' || fail "a planned restart waits"
wait_for 10 "the set is up" all_up
mark_set_standard
