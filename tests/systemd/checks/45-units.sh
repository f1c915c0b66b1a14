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

# The status of patou.service is one line on the whole set.
tells() { show patou.service StatusText | has -E "$1"; }
wait_to_tell() { wait_for 10 "patou.service tells '$1' (it is '$(show patou.service StatusText)')" tells "$1"; }
wait_to_tell '^3 workers: 0 busy, 3 idle; no client waits'
systemctl --no-pager status patou.service | has 'Status: "3 workers: 0 busy, 3 idle; no client waits' ||
    fail "systemctl status patou does not show the line: $(systemctl --no-pager status patou.service)"
resident=$(main_pid patou.service)
expect "the user of the process of patou.service" "$(stat --format %U "/proc/$resident")" patou

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
    case $missing in
    patou-dispatcher.service) wait_to_tell 'dispatcher is stopped' ;;
    patou-watchdog.service) wait_to_tell 'watchdog' ;;
    *) wait_to_tell 'worker default/2 is stopped' ;;
    esac
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
wait_to_tell 'last restart: worker default/1 less than a minute ago \(.*SIGKILL'
log "patou.service: $(show patou.service StatusText)"
tells_end() { show patou-worker@default-1.service StatusText | has 'last end: .*SIGKILL'; }
for _ in {1..9}; do responds_on_tcp; done
wait_for 25 "worker 1 tells its last end" tells_end
log "worker 1: $(show patou-worker@default-1.service StatusText)"
# A new watchdog knows it too.
kill -KILL "$(main_pid patou-watchdog.service)"
wait_for 10 "the watchdog is back" all_up
wait_to_tell 'last restart: worker default/1'

# The death of the process of patou.service is none of the set, and it comes back; SIGHUP has it execute the program again.
before=$(parts_except none)
kill -KILL "$(main_pid patou.service)"
wait_for 10 "patou.service has a process again" replaced patou.service "$resident"
wait_to_tell '^3 workers: '
kill -HUP "$(main_pid patou.service)"
wait_to_tell '^3 workers: '
expect "the parts" "$(parts_except none)" "$before"
expect "patou.service" "$(systemctl is-active patou.service)" active
slice_has() { journalctl --quiet --boot --unit=patou.slice --output=cat | has -F "$1"; }
wait_for 10 "journalctl -u patou.slice shows the log of the parts" slice_has 'worker default/1 is back in service'

# Nothing of it is left after a stop.
systemctl stop patou
expect "the dependencies of a stopped set" "$(depends | grep -c 'patou-' || true)" 0
systemctl start patou || fail "systemctl start patou"
wait_for 10 "the set is up" all_up
mark_set_standard
