# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# systemctl restart of any one part under load fails no request and touches no other part.
. /checks/lib.sh
need_started

for unit in "${parts[@]}"; do
    systemctl reset-failed 'patou*' 2>/dev/null || true
    before=$(others_than "$unit" && sockets)
    pid=$(main_pid "$unit")
    loop_curl 4
    begin=$(micros)
    systemctl restart "$unit" || fail "systemctl restart $unit"
    took=$(millis_since "$begin")
    expect "$unit" "$(systemctl is-active "$unit")" active
    replaced "$unit" "$pid" || fail "$unit is still process $pid"
    no_request_failed "systemctl restart ${unit%.service} ($took ms)"
    expect "the rest of the set" "$(others_than "$unit" && sockets)" "$before"
    wait_for 5 "the set is up" all_up
done

# Again and again, at any moment.
loop_curl 4
for _ in 1 2 3; do
    for unit in "${parts[@]}"; do
        systemctl reset-failed 'patou*' 2>/dev/null || true
        systemctl restart "$unit" || fail "systemctl restart $unit"
    done
done
no_request_failed "15 restarts, one after the other"

# SIGHUP to a single part, as an administrator may do it.
before=$(others_than none)
loop_curl 4
for unit in "${parts[@]}"; do
    systemctl reload "$unit" || fail "systemctl reload $unit"
done
no_request_failed "systemctl reload of each part"
expect "the set" "$(others_than none)" "$before"

# What an upgrade of the package does.
systemctl reset-failed 'patou*' 2>/dev/null || true
before=$(others_than none)
loop_curl 4
begin=$(micros)
patou systemd upgrade || fail "patou systemd upgrade"
took=$(millis_since "$begin")
no_request_failed "patou systemd upgrade ($took ms)"
for unit in "${parts[@]}"; do
    pid=$(awk -v unit="$unit" '$1 == unit { print $2 }' <<<"$before")
    replaced "$unit" "$pid" || fail "$unit is still process $pid"
done
wait_for 5 "the set is up" all_up
systemctl reset-failed 'patou*' 2>/dev/null || true
keep_set
