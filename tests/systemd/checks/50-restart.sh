# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# systemctl restart of any one part under load loses no request and touches no other part.
. /checks/lib.sh
ensure_started

for unit in "${parts[@]}"; do
    systemctl reset-failed 'patou*' 2>/dev/null || true
    before=$(parts_except "$unit" && sockets)
    pid=$(main_pid "$unit")
    load_start 4
    t0=$(micros)
    systemctl restart "$unit" || fail "systemctl restart $unit"
    took=$(millis_since "$t0")
    expect "$unit" "$(systemctl is-active "$unit")" active
    replaced "$unit" "$pid" || fail "$unit is still process $pid"
    load_stop_without_failure "systemctl restart ${unit%.service} ($took ms)"
    expect "the rest of the set" "$(parts_except "$unit" && sockets)" "$before"
    wait_for 5 "the set is up" all_up
done

# /healthz is right when a start or restart is complete, and no restart of a part is an outage.
health() { curl --silent --max-time 5 --unix-socket /run/patou/admin.sock --output "$check_dir/health" --write-out '%{http_code}' http://patou/healthz; }
for _ in 1 2 3; do
    systemctl restart patou || fail "systemctl restart patou"
    expect "/healthz right after a restart" "$(health) $(cat "$check_dir/health")" '200 {"state":"ready","reasons":[]}'
    patou status --wait 1ms >/dev/null || fail "the set is not up when its restart is complete"
done
for unit in patou-dispatcher.service patou-worker@default-1.service; do
    systemctl restart "$unit" &
    restarting=$!
    while kill -0 "$restarting" 2>/dev/null; do
        expect "/healthz while $unit restarts" "$(health)" 200
    done
    wait "$restarting"
    for _ in {1..30}; do expect "/healthz after $unit has been restarted" "$(health)" 200; done
    wait_for 5 "the set is up" all_up
done
systemctl restart patou-watchdog.service
expect "/healthz right after a restart of the watchdog" "$(health)" 200
# A pool whose requests all fail is degraded, and says why; an answer of systemd is needed for that.
{ base_configuration && printf '[watchdog]\ndegraded_after = "1h"\n' && default_pool 3 '{ exec = ["/bin/sh", "-c", "exit 7"] }'; } | configure
reload_handlers
curl --silent --location --output /dev/null http://127.0.0.1:7286/x
says_why() { health >"$check_dir/code" && grep -q 'every request to pool default failed in the last 1h (last error, of worker default/[1-3]: .*7' "$check_dir/health"; }
wait_for 5 "/healthz says why every request fails" says_why
expect "/healthz of a pool whose requests fail" "$(cat "$check_dir/code") $(jq -r .state "$check_dir/health")" "200 degraded"
log "$(cat "$check_dir/health")"
patou status | has '^problem: every request to pool default failed' || fail "patou status does not show it"
configure_standard
reload_handlers

# Repeatedly, without waiting for the set to be up.
load_start 4
for _ in 1 2 3; do
    for unit in "${parts[@]}"; do
        systemctl reset-failed 'patou*' 2>/dev/null || true
        systemctl restart "$unit" || fail "systemctl restart $unit"
    done
done
load_stop_without_failure "15 restarts, one after the other"

# SIGHUP to a single part, as an administrator may send it.
before=$(parts_except none)
load_start 4
for unit in "${parts[@]}"; do
    systemctl reload "$unit" || fail "systemctl reload $unit"
done
load_stop_without_failure "systemctl reload of each part"
expect "the set" "$(parts_except none)" "$before"

# What an upgrade of the package does.
systemctl reset-failed 'patou*' 2>/dev/null || true
before=$(parts_except none)
load_start 4
t0=$(micros)
patou systemd upgrade || fail "patou systemd upgrade"
took=$(millis_since "$t0")
load_stop_without_failure "patou systemd upgrade ($took ms)"
for unit in "${parts[@]}"; do
    pid=$(awk -v unit="$unit" '$1 == unit { print $2 }' <<<"$before")
    replaced "$unit" "$pid" || fail "$unit is still process $pid"
done
wait_for 5 "the set is up" all_up
systemctl reset-failed 'patou*' 2>/dev/null || true
mark_set_standard
