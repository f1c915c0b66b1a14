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
