# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# patou.service and the slice show the set as it is, and a start of patou.service starts what is missing.
. /checks/lib.sh
ensure_started

# Services and sockets are in the slice.
for unit in "${parts[@]}" patou-ipc.service patou-{probe,admin}.socket patou-worker@default-1.socket \
    $(systemctl list-units --plain --no-legend "patou-listener@*.socket" | awk '{ print $1 }'); do
    expect "the slice of $unit" "$(show "$unit" Slice)" patou.slice
done
systemctl --no-pager status patou.slice >"$check_dir/slice" || fail "systemctl status patou.slice"
for unit in "${parts[@]}"; do
    has -F "$unit" <"$check_dir/slice" || fail "systemctl status patou.slice does not show $unit: $(cat "$check_dir/slice")"
done

has 'patou status' <<<"$(show patou.service StatusText)" || fail "the status of patou.service is '$(show patou.service StatusText)'"

# list-dependencies shows the parts of the running set.
depends() { systemctl list-dependencies --plain patou.service; }
depends >"$check_dir/dependencies"
for unit in "${parts[@]}" patou-ipc.service; do
    has -F "$unit" <"$check_dir/dependencies" || fail "list-dependencies does not show $unit: $(cat "$check_dir/dependencies")"
done

# A start starts what is missing: parts that an operator has stopped, and one that was given up.
for missing in patou-dispatcher.service patou-watchdog.service patou-worker@default-2.service; do
    before=$(parts_except "$missing")
    systemctl stop "$missing" 2>/dev/null || fail "systemctl stop $missing"
    expect "$missing" "$(systemctl is-active "$missing" || true)" inactive
    systemctl start patou || fail "systemctl start patou without $missing"
    wait_for 10 "$missing is started" all_up
    expect "the other parts" "$(parts_except "$missing")" "$before"
    wait_for 5 "the set serves" responds_on_tcp
done
systemctl stop "${workers[@]}" patou-dispatcher.service 2>/dev/null
systemctl start patou || fail "systemctl start patou without most of it"
wait_for 10 "all of it is started" all_up

# The dependencies follow a reload.
{ base_configuration && default_pool 4; } | configure
systemctl reload patou || fail "systemctl reload patou"
depends | has patou-worker@default-4.service || fail "list-dependencies does not show a new worker: $(depends)"
configure_standard
systemctl reload patou || fail "systemctl reload patou"
! depends | has patou-worker@default-4.service || fail "list-dependencies shows a removed worker"

# Each worker says in one line how it is: its state, what it has served, and its failures.
for _ in {1..5}; do responds_on_tcp; done
status_tells() {
    local unit text
    for unit in "${workers[@]}"; do
        text=$(show "$unit" StatusText)
        [[ $text =~ ^(idle|busy),\ [0-9]+\ served ]] || return 1
    done
}
wait_for 15 "the workers tell their state" status_tells
served() { for unit in "${workers[@]}"; do show "$unit" StatusText; done | sed -n 's/^[a-z]*, \([0-9]*\) served.*/\1/p' | awk '{ sum += $1 } END { print sum }'; }
all_served() { [ "$(served)" = "$(patou status --json | jq '[.pools[].workers[].served] | add')" ]; }
wait_for 25 "the statuses of the workers show what they have served" all_served
log "worker 1: $(show patou-worker@default-1.service StatusText)"
log "dispatcher: $(show patou-dispatcher.service StatusText)"
log "watchdog: $(show patou-watchdog.service StatusText)"
kill -KILL "$(main_pid patou-worker@default-1.service)"
tells_restart() { show patou-watchdog.service StatusText | has 'last restart: worker default/1'; }
wait_for 10 "the watchdog tells the last restart" tells_restart
log "watchdog: $(show patou-watchdog.service StatusText)"
slice_has() { journalctl --quiet --boot --unit=patou.slice --output=cat | has -F "$1"; }
wait_for 10 "journalctl -u patou.slice shows the log of the parts" slice_has 'worker default/1 is back in service'

# Nothing of it is left after a stop.
systemctl stop patou
expect "the dependencies of a stopped set" "$(depends | grep -c 'patou-' || true)" 0
systemctl start patou || fail "systemctl start patou"
wait_for 10 "the set is up" all_up
mark_set_standard
