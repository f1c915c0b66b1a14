# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# The configuration is the only truth, and only a reload makes it so: a good one is applied to whom it concerns, a wrong
# one changes nothing, and nobody else's daemon-reload changes anything.
. /checks/lib.sh
need_started

services() { systemctl list-units --plain --no-legend --no-pager --state=active 'patou-*.service' 'patou-*.socket' | awk '{ print $1 }'; }
pids_of() { for unit in "$@"; do main_pid "$unit"; done; }
# Everything that systemd knows about the set and that a drop-in could change.
known() {
    local unit
    for unit in $(services); do
        systemctl show "$unit" --property=Id,MainPID,NRestarts,User,Environment,MemoryMax,CPUQuotaPerSecUSec,TasksMax \
            --property=LimitNOFILE,Listen,FileDescriptorStoreMax,TimeoutStopUSec,WatchdogUSec,StartLimitBurst
    done
    cat /run/patou-applied/patou.toml
}

# Nothing changed: nothing happens.
before=$(known)
systemctl reload patou
expect "the set after a reload of the same" "$(known)" "$before"

# More workers, while clients come: those who were there are not touched.
before=$(pids_of "${parts[@]}")
loop_curl 4
{ configuration && default_pool 5; } | configure
begin=$(micros)
systemctl reload patou || fail "systemctl reload with two workers more"
took=$(millis_since "$begin")
wait_for 10 "five workers are up" all_up
no_request_failed "two workers more ($took ms)"
expect "worker 5" "$(worker_is default/5 gone && echo gone || echo there)" there
expect "the other parts" "$(pids_of "${parts[@]}")" "$before"

# Fewer: the surplus drains, and nothing of it is left.
loop_curl 4
{ configuration && default_pool 2; } | configure
begin=$(micros)
systemctl reload patou || fail "systemctl reload with three workers less"
took=$(millis_since "$begin")
no_request_failed "three workers less ($took ms)"
expect "the parts that stay" "$(pids_of "${parts[@]:0:4}")" "$(head -n 4 <<<"$before")"
for n in 3 4 5; do
    for kind in service socket; do
        expect "patou-worker@default-$n.$kind" "$(systemctl is-active "patou-worker@default-$n.$kind" || true)" inactive
    done
done
expect "segments" "$(find /dev/shm -name 'patou.*' | wc -l)" 2
expect "workers in status" "$(patou status --json | jq '.pools[0].workers | length')" 2
standard
systemctl reload patou
wait_for 10 "three workers are up" all_up

# Limits, user and environment become settings of the units, and of the processes.
useradd --system --no-create-home conversions 2>/dev/null || true
limits='user = "conversions"
environment = { GREETING = "50% \"of\" it", SECOND = "x y" }
limits = { memory_max = "512M", cpu_quota = "50%", tasks_max = "64", open_files = "1024" }'
before=$(pids_of "${parts[@]:0:2}")
loop_curl 4
{ configuration && default_pool 3 '{ exec = ["/usr/bin/env"] }' "$limits"; } | sed 's#"/usr/bin/env"#"/bin/sh", "-c", "printf \\"Content-Type: text/plain\\\\n\\\\n\\"; env; id -un"#' | configure
patou check >/dev/null || fail "patou check"
systemctl reload patou || fail "systemctl reload with limits"
wait_for 10 "the set is up" all_up
no_request_failed "limits, user, environment and handler of the pool"
for unit in "${workers[@]}"; do
    expect "MemoryMax of $unit" "$(show "$unit" MemoryMax)" $((512 << 20))
    expect "CPUQuota of $unit" "$(show "$unit" CPUQuotaPerSecUSec)" 500ms
    expect "TasksMax of $unit" "$(show "$unit" TasksMax)" 64
    expect "LimitNOFILE of $unit" "$(show "$unit" LimitNOFILE)" 1024
    expect "User of $unit" "$(show "$unit" User)" conversions
    show "$unit" Environment | has -F 'SECOND=x y' || fail "Environment of $unit is $(show "$unit" Environment)"
    expect "the user of process $(main_pid "$unit")" "$(ps -o user:20= -p "$(main_pid "$unit")")" conversions
    grep -qE '^Max open files +1024 ' "/proc/$(main_pid "$unit")/limits" || fail "$unit runs with other open files"
done
said=$(curl --silent --fail --location http://127.0.0.1:7286/x)
grep -qxF 'GREETING=50% "of" it' <<<"$said" || fail "the handler's environment lacks GREETING: $said"
grep -qxF conversions <<<"$said" || fail "the handler is not user conversions: $said"
expect "the dispatcher" "$(main_pid patou-dispatcher.service)" "$(tail -n 1 <<<"$before")"
# The watchdog reads what the workers hold: for that it has begun again, in their group.
[ "$(main_pid patou-watchdog.service)" != "$(head -n 1 <<<"$before")" ] || fail "the watchdog has not been restarted"
grep "^Groups:" "/proc/$(main_pid patou-watchdog.service)/status" | has -w "$(id -g conversions)" ||
    fail "the watchdog is not in the group of conversions"
limited=$(known)

# Wrong ones are refused, with the reason in the journal, and nothing has changed.
refused() { # WHAT REASON, the configuration on standard input
    local mark
    configure
    mark=$(mark)
    expect_failure "systemctl reload: $1" systemctl reload patou
    words_since "$mark" --unit=patou.service | has -- "$2" || fail "$1: the journal does not say '$2' but: $(words_since "$mark")"
    [ "$(known)" = "$limited" ] || fail "$1 has changed the set: $(diff <(echo "$limited") <(known))"
    expect "patou.service after $1" "$(systemctl is-active patou)" active
    answered_on_tcp || fail "not served after $1"
}
refused "garbage" "patou.toml" < <(head -c 2000 /dev/urandom)
refused "an unknown key" "wrokers" < <({ configuration && default_pool 3 && echo 'wrokers = 3'; })
refused "a pool that is not there" "nobody" < <({ configuration && printf '[[listener]]\naddress = "127.0.0.1:7290"\npool = "nobody"\n' && default_pool 3; })
refused "a program that is not there" "/no/such/program" < <({ configuration && default_pool 3 '{ exec = ["/no/such/program"] }'; })
refused "an empty file" "is empty" < <(printf '# nothing yet\n\n')
refused "a user that does not exist" "nobody-knows-me" < <({ configuration && default_pool 3 '"echo"' 'user = "nobody-knows-me"'; })
refused "another set" "set.name" < <({ configuration && default_pool 3; } | sed 's/name = "patou"/name = "other"/')
refused "another folder" "runtime_dir" < <({ configuration && default_pool 3; } | sed 's#/run/patou"#/run/elsewhere"#')
python3 -c 'import socket, time
s = socket.socket(); s.bind(("127.0.0.1", 7299)); s.listen(); time.sleep(60)' &
squatter=$!
taken() { ss --no-header --listening --tcp 'sport = :7299' | has .; }
wait_for 5 "the port is taken" taken
refused "a port that is taken" "7299" < <({ configuration && printf '[[listener]]\naddress = "127.0.0.1:7299"\npool = "default"\n' && default_pool 3; })
kill "$squatter"
wait "$squatter" 2>/dev/null || true
mkdir /etc/patou/patou.toml.dir && rm /etc/patou/patou.toml && mv /etc/patou/patou.toml.dir /etc/patou/patou.toml
mark=$(mark)
expect_failure "reload of a folder" systemctl reload patou
[ "$(known)" = "$limited" ] || fail "a folder has changed the set"
rmdir /etc/patou/patou.toml
expect_failure "reload of nothing" systemctl reload patou
[ "$(known)" = "$limited" ] || fail "a missing file has changed the set: $(diff <(echo "$limited") <(known))"

# daemon-reload by somebody else, with anything in /etc: nothing changes, now or when a part is started again.
foreign() { # WHAT
    systemctl daemon-reload
    [ "$(known)" = "$limited" ] || fail "daemon-reload with $1 has changed the set: $(diff <(echo "$limited") <(known))"
}
loop_curl 4
foreign "no file"
head -c 2000 /dev/urandom | configure
foreign "garbage"
configure </dev/null
foreign "an empty file"
standard
foreign "another valid file"
chmod 0 /etc/patou/patou.toml
foreign "an unreadable file"
rm /etc/patou/patou.toml
mkdir /etc/patou/patou.toml
foreign "a folder"
rmdir /etc/patou/patou.toml
systemctl reset-failed 'patou*' 2>/dev/null || true
for unit in "${parts[@]}"; do
    systemctl restart "$unit" || fail "systemctl restart $unit, with nothing in /etc/patou"
done
wait_for 10 "the set is up" all_up
# At any moment: again and again while parts restart.
(
    for n in {1..20}; do
        if ((n % 2)); then head -c 500 /dev/urandom; else configuration && default_pool 1; fi | configure
        systemctl daemon-reload
    done
) &
reloading=$!
systemctl reset-failed 'patou*' 2>/dev/null || true
for unit in "${parts[@]}"; do
    systemctl restart "$unit" || fail "systemctl restart $unit, while daemon-reload goes on"
done
wait "$reloading"
no_request_failed "daemon-reload by others"
without_pids() { grep -vE '^(MainPID|NRestarts)=' <<<"$1"; }
[ "$(without_pids "$(known)")" = "$(without_pids "$limited")" ] || fail "daemon-reload has changed the set: $(diff <(echo "$limited") <(known))"

# Another address: a listener comes and goes, while clients come on the one that stays.
loop_curl 4
{ configuration && printf '\n[[listener]]\naddress = "127.0.0.1:7290"\npool = "default"\n' && default_pool 3; } | configure
systemctl reload patou || fail "systemctl reload with one listener more"
wait_for 10 "the set is up" all_up
curl --silent --fail --location --output /dev/null http://127.0.0.1:7290/x || fail "the new listener does not serve"
standard
systemctl reload patou || fail "systemctl reload with one listener less"
wait_for 10 "the set is up" all_up
no_request_failed "a listener comes and goes"
expect_failure "a connection to the listener that went" curl --silent --max-time 5 http://127.0.0.1:7290/x

# A drop-in for a pool is one for each of its workers, also for who comes later.
pool=/etc/systemd/system/patou-worker@default-.service.d
mkdir -p "$pool"
printf '[Service]\nStateDirectory=patou-check\n' >"$pool/state.conf"
echo 'not for systemd' >"$pool/README"
systemctl daemon-reload
{ configuration && default_pool 4; } | configure
systemctl reload patou || fail "systemctl reload with a drop-in for the pool"
wait_for 10 "the set is up" all_up
for n in {1..4}; do
    expect "StateDirectory of worker $n" "$(show "patou-worker@default-$n.service" StateDirectory)" patou-check
done
expect "the state directory" "$(stat --format %U /var/lib/patou-check)" patou-worker
rm -r "$pool" /var/lib/patou-check
systemctl daemon-reload
standard
systemctl reload patou
wait_for 10 "the set is up" all_up
expect "StateDirectory without the drop-in" "$(show patou-worker@default-1.service StateDirectory)" ""
keep_set
