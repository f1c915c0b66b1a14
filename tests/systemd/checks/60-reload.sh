# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# Only a reload applies the configuration: a valid one changes the parts that it concerns, an invalid one changes
# nothing, and a daemon-reload for another reason changes nothing.
. /checks/lib.sh
ensure_started

services() { systemctl list-units --plain --no-legend --no-pager --state=active 'patou-*.service' 'patou-*.socket' | awk '{ print $1 }'; }
pids_of() { for unit in "$@"; do main_pid "$unit"; done; }
# The settings of all units that a drop-in could change, and the published configuration.
state() {
    local unit
    for unit in $(services); do
        systemctl show "$unit" --property=Id,MainPID,NRestarts,User,Environment,MemoryMax,CPUQuotaPerSecUSec,TasksMax \
            --property=LimitNOFILE,Listen,FileDescriptorStoreMax,TimeoutStopUSec,WatchdogUSec,StartLimitBurst
    done
    cat /run/patou-applied/patou.toml
}

# A reload without a change does nothing.
before=$(state)
systemctl reload patou
expect "the set after a reload of the same" "$(state)" "$before"

# More workers, under load: the existing parts are not touched.
before=$(pids_of "${parts[@]}")
load_start 4
{ base_configuration && default_pool 5; } | configure
t0=$(micros)
systemctl reload patou || fail "systemctl reload with two more workers"
took=$(millis_since "$t0")
wait_for 10 "five workers are up" all_up
load_stop_without_failure "two more workers ($took ms)"
expect "worker 5" "$(worker_is default/5 gone && echo gone || echo there)" there
expect "the other parts" "$(pids_of "${parts[@]}")" "$before"

# Fewer workers: the surplus drains and leaves nothing behind.
load_start 4
{ base_configuration && default_pool 2; } | configure
t0=$(micros)
systemctl reload patou || fail "systemctl reload with three fewer workers"
took=$(millis_since "$t0")
load_stop_without_failure "three fewer workers ($took ms)"
expect "the parts that stay" "$(pids_of "${parts[@]:0:4}")" "$(head -n 4 <<<"$before")"
for n in 3 4 5; do
    for kind in service socket; do
        expect "patou-worker@default-$n.$kind" "$(systemctl is-active "patou-worker@default-$n.$kind" || true)" inactive
    done
done
expect "segments" "$(find /dev/shm -name 'patou.*' | wc -l)" 2
expect "workers in status" "$(patou status --json | jq '.pools[0].workers | length')" 2
configure_standard
systemctl reload patou
wait_for 10 "three workers are up" all_up

# Limits, user and environment become settings of the units and of the processes.
useradd --system --no-create-home conversions 2>/dev/null || true
limits='user = "conversions"
environment = { GREETING = "50% \"of\" it", SECOND = "x y" }
limits = { memory_max = "512M", cpu_quota = "50%", tasks_max = "64", open_files = "1024" }'
before=$(pids_of "${parts[@]:0:2}")
load_start 4
{ base_configuration && default_pool 3 '{ exec = ["/usr/bin/env"] }' "$limits"; } | sed 's#"/usr/bin/env"#"/bin/sh", "-c", "printf \\"Content-Type: text/plain\\\\n\\\\n\\"; env; id -un"#' | configure
patou check >/dev/null || fail "patou check"
systemctl reload patou || fail "systemctl reload with limits"
wait_for 10 "the set is up" all_up
load_stop_without_failure "limits, user, environment and handler of the pool"
for unit in "${workers[@]}"; do
    expect "MemoryMax of $unit" "$(show "$unit" MemoryMax)" $((512 << 20))
    expect "CPUQuota of $unit" "$(show "$unit" CPUQuotaPerSecUSec)" 500ms
    expect "TasksMax of $unit" "$(show "$unit" TasksMax)" 64
    expect "LimitNOFILE of $unit" "$(show "$unit" LimitNOFILE)" 1024
    expect "User of $unit" "$(show "$unit" User)" conversions
    show "$unit" Environment | has -F 'SECOND=x y' || fail "Environment of $unit is $(show "$unit" Environment)"
    expect "the user of process $(main_pid "$unit")" "$(ps -o user:20= -p "$(main_pid "$unit")")" conversions
    grep -qE '^Max open files +1024 ' "/proc/$(main_pid "$unit")/limits" || fail "$unit has another limit of open files"
done
output=$(curl --silent --fail --location http://127.0.0.1:7286/x)
grep -qxF 'GREETING=50% "of" it' <<<"$output" || fail "the handler's environment lacks GREETING: $output"
grep -qxF conversions <<<"$output" || fail "the handler is not user conversions: $output"
expect "the dispatcher" "$(main_pid patou-dispatcher.service)" "$(tail -n 1 <<<"$before")"
# The watchdog reads what the workers hold, and was restarted to get their group.
[ "$(main_pid patou-watchdog.service)" != "$(head -n 1 <<<"$before")" ] || fail "the watchdog was not restarted"
grep "^Groups:" "/proc/$(main_pid patou-watchdog.service)/status" | has -w "$(id -g conversions)" ||
    fail "the watchdog is not in the group of conversions"
limited=$(state)

# An invalid configuration is rejected with the reason in the journal, and changes nothing.
rejected() { # WHAT REASON; the configuration is on standard input
    local mark
    configure
    mark=$(mark)
    expect_failure "systemctl reload: $1" systemctl reload patou
    messages_since "$mark" --unit=patou.service | has -- "$2" || fail "$1: the journal has no '$2' but: $(messages_since "$mark")"
    [ "$(state)" = "$limited" ] || fail "$1 has changed the set: $(diff <(echo "$limited") <(state))"
    expect "patou.service after $1" "$(systemctl is-active patou)" active
    responds_on_tcp || fail "not serving after $1"
}
rejected "garbage" "patou.toml" < <(head -c 2000 /dev/urandom)
rejected "an unknown key" "wrokers" < <({ base_configuration && default_pool 3 && echo 'wrokers = 3'; })
rejected "a pool that does not exist" "no_such_pool" < <({ base_configuration && printf '[[listener]]\naddress = "127.0.0.1:7290"\npool = "no_such_pool"\n' && default_pool 3; })
rejected "a program that does not exist" "/no/such/program" < <({ base_configuration && default_pool 3 '{ exec = ["/no/such/program"] }'; })
rejected "an empty file" "at least one" < <(printf '# nothing yet\n\n')
rejected "a user that does not exist" "no-such-user" < <({ base_configuration && default_pool 3 '"echo"' 'user = "no-such-user"'; })
rejected "another set" "set.name" < <({ base_configuration && default_pool 3; } | sed 's/name = "patou"/name = "other"/')
rejected "another directory" "runtime_dir" < <({ base_configuration && default_pool 3; } | sed 's#/run/patou"#/run/elsewhere"#')
python3 -c 'import socket, time
s = socket.socket(); s.bind(("127.0.0.1", 7299)); s.listen(); time.sleep(60)' &
other=$!
in_use() { ss --no-header --listening --tcp 'sport = :7299' | has .; }
wait_for 5 "the port is in use" in_use
rejected "a port that is in use" "7299" < <({ base_configuration && printf '[[listener]]\naddress = "127.0.0.1:7299"\npool = "default"\n' && default_pool 3; })
kill "$other"
wait "$other" 2>/dev/null || true
mkdir /etc/patou/patou.toml.dir && rm /etc/patou/patou.toml && mv /etc/patou/patou.toml.dir /etc/patou/patou.toml
mark=$(mark)
expect_failure "reload of a directory" systemctl reload patou
[ "$(state)" = "$limited" ] || fail "a directory in place of the file has changed the set"
rmdir /etc/patou/patou.toml
expect_failure "reload without a file" systemctl reload patou
[ "$(state)" = "$limited" ] || fail "a missing file has changed the set: $(diff <(echo "$limited") <(state))"

# A daemon-reload changes nothing, whatever is in /etc: not at once, and not when a part is restarted.
daemon_reload() { # WHAT
    systemctl daemon-reload
    [ "$(state)" = "$limited" ] || fail "daemon-reload with $1 has changed the set: $(diff <(echo "$limited") <(state))"
}
load_start 4
daemon_reload "no file"
head -c 2000 /dev/urandom | configure
daemon_reload "garbage"
configure </dev/null
daemon_reload "an empty file"
configure_standard
daemon_reload "another valid file"
chmod 0 /etc/patou/patou.toml
daemon_reload "an unreadable file"
rm /etc/patou/patou.toml
mkdir /etc/patou/patou.toml
daemon_reload "a directory"
rmdir /etc/patou/patou.toml
systemctl reset-failed 'patou*' 2>/dev/null || true
for unit in "${parts[@]}"; do
    systemctl restart "$unit" || fail "systemctl restart $unit, without a file in /etc/patou"
done
wait_for 10 "the set is up" all_up
# At any moment: repeatedly while parts restart.
(
    for n in {1..20}; do
        if ((n % 2)); then head -c 500 /dev/urandom; else base_configuration && default_pool 1; fi | configure
        systemctl daemon-reload
    done
) &
reloading=$!
systemctl reset-failed 'patou*' 2>/dev/null || true
for unit in "${parts[@]}"; do
    systemctl restart "$unit" || fail "systemctl restart $unit, during daemon-reload"
done
wait "$reloading"
load_stop_without_failure "daemon-reload"
without_pids() { grep -vE '^(MainPID|NRestarts)=' <<<"$1"; }
[ "$(without_pids "$(state)")" = "$(without_pids "$limited")" ] || fail "daemon-reload has changed the set: $(diff <(echo "$limited") <(state))"

# A listener is added and removed, under load on the listener that stays.
load_start 4
{ base_configuration && printf '\n[[listener]]\naddress = "127.0.0.1:7290"\npool = "default"\n' && default_pool 3; } | configure
systemctl reload patou || fail "systemctl reload with one more listener"
wait_for 10 "the set is up" all_up
curl --silent --fail --location --output /dev/null http://127.0.0.1:7290/x || fail "the new listener does not serve"
configure_standard
systemctl reload patou || fail "systemctl reload with one fewer listener"
wait_for 10 "the set is up" all_up
load_stop_without_failure "a listener is added and removed"
expect_failure "a connection to the removed listener" curl --silent --max-time 5 http://127.0.0.1:7290/x

# A drop-in for a pool applies to each of its workers, also to those added later.
pool=/etc/systemd/system/patou-worker@default-.service.d
mkdir -p "$pool"
printf '[Service]\nStateDirectory=patou-check\n' >"$pool/state.conf"
echo 'not a drop-in' >"$pool/README"
systemctl daemon-reload
{ base_configuration && default_pool 4; } | configure
systemctl reload patou || fail "systemctl reload with a drop-in for the pool"
wait_for 10 "the set is up" all_up
for n in {1..4}; do
    expect "StateDirectory of worker $n" "$(show "patou-worker@default-$n.service" StateDirectory)" patou-check
done
expect "the state directory" "$(stat --format %U /var/lib/patou-check)" patou-worker
rm -r "$pool" /var/lib/patou-check
systemctl daemon-reload
configure_standard
systemctl reload patou
wait_for 10 "the set is up" all_up
expect "StateDirectory without the drop-in" "$(show patou-worker@default-1.service StateDirectory)" ""
mark_set_standard
