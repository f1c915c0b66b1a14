# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# Files of the running set are removed: requests continue, killed parts come back, and /healthz names what is missing.
. /checks/lib.sh
ensure_started

health() { curl --silent --unix-socket /run/patou/admin.sock http://patou/healthz; }
health_is() { [ "$(health | jq --raw-output .state)" = "$1" ]; }
reason() { health | jq --raw-output '.reasons[]' | has "$1"; }

stored() { journalctl --unit patou-dispatcher.service --no-pager | has "gets them from systemd"; }

# kill_part UNIT: kills its main process and waits for the next one.
kill_part() {
    local pid
    pid=$(main_pid "$1")
    kill -KILL "$pid"
    wait_for 10 "$1 is replaced" replaced "$1" "$pid"
    wait_for 10 "the set is up" all_up
}

units=$(systemctl list-units --plain --no-legend 'patou-worker@*.service' | awk '{print $1}')
systemctl reset-failed 'patou*' 2>/dev/null || true # this does not test the start limit

# Segments and doorbells: the dispatcher stores what it holds, each worker gets new ones.
load_start 4
rm -f /dev/shm/patou.* /run/patou/*/*.dw /run/patou/*/*.wd
wait_for 10 "/healthz is degraded" health_is degraded
wait_for 10 "the dispatcher has stored its objects" stored
kill_part patou-dispatcher.service
for unit in $units; do
    kill_part "$unit"
done
load_stop
wait_for 10 "/healthz is ready" health_is ready
# One request of each killed worker, and those that the dispatcher had accepted.
((failed <= 4 + $(wc -w <<<"$units"))) || fail "$failed requests failed: $failures"

# One file of a worker alone: its next start creates all of them again, and removes what is left of the old ones.
worker=$(head -n 1 <<<"$units")
instance=${worker#patou-worker@}
instance=${instance%.service}
id=${instance%-*}/${instance##*-}
for kind in dw wd segment shm; do
    file=/run/patou/$id.$kind
    [ "$kind" != shm ] || file=/dev/shm$(cat "/run/patou/$id.segment")
    rm "$file"
    kill_part "$worker"
    wait_for 10 "/healthz is ready without $file" health_is ready
    restarts=$(systemctl show --value --property NRestarts "$worker")
    sleep 2
    expect "restarts of $instance without $file" "$(systemctl show --value --property NRestarts "$worker")" "$restarts"
    state=$(patou status --json | jq --raw-output --arg id "$id" '.pools[].workers[] | select(.id == $id) | .state')
    expect "the state of $instance without $file" "$state" idle
    expect "segments without $file" "$(find /dev/shm -name 'patou.*' | wc -l)" "$(wc -w <<<"$units")"
done

# probe.sock: bound again by the dispatcher, which is not killed.
dispatcher=$(main_pid patou-dispatcher.service)
rm /run/patou/probe.sock
wait_for 10 "probe.sock is bound again" test -S /run/patou/probe.sock
expect "the dispatcher" "$(main_pid patou-dispatcher.service)" "$dispatcher"
kill_part patou-watchdog.service
kill_part patou-dispatcher.service

# The configuration in force: /healthz names what creates it again.
rm /run/patou-applied/patou.toml
wait_for 10 "/healthz names the configuration in force" reason "until systemctl restart patou creates it again"
systemctl restart patou
wait_for 10 "/healthz is ready" health_is ready

# A socket unit: /healthz names the units to restart.
worker=$(head -n 1 <<<"$units")
instance=${worker#patou-worker@}
instance=${instance%.service}
rm "/run/patou/${instance%-*}/${instance##*-}.sock"
wait_for 10 "/healthz names the units" reason "systemctl restart patou-worker@$instance.socket $worker"
systemctl restart "patou-worker@$instance.socket" "$worker"
wait_for 10 "/healthz is ready" health_is ready
# A segment without a record.
rm "/run/patou/$id.segment"
systemctl stop patou
assert_nothing_left
