# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# What is not a worker's fault is not held against it: the watchdog sees it as an ordinary user, in its sandbox, and a
# worker whose control group is frozen lives. (tests/overload.rs starves one.) A pool whose workers have all failed says so.
. /checks/lib.sh
need_started

unit=patou-worker@default-1.service
told() { words_since "$marked" "PATOU_EVENT=$1" PATOU_WORKER=default/1 | has .; }
stays() { expect "the process of $unit $1" "$(main_pid "$unit")" "$pid"; }

# What the kernel says of others is readable from within.
watchdog=$(main_pid patou-watchdog.service)
pid=$(main_pid "$unit")
within() {
    nsenter --target "$watchdog" --mount setpriv --reuid=patou-watchdog --regid=patou-watchdog --clear-groups "$@"
}
group=$(show "$unit" ControlGroup)
for file in /proc/pressure/memory /proc/pressure/io "/proc/$pid/status" "/proc/$pid/task/$pid/schedstat" \
    "/proc/$pid/cgroup" "/sys/fs/cgroup$group/cgroup.freeze"; do
    case $file in /proc/pressure/*) [ -e "$file" ] || continue ;; esac
    within cat "$file" | has . || fail "$file cannot be read by the watchdog"
done

# Frozen by the administrator, for longer than worker_timeout: suspended, and the same process afterwards.
marked=$(mark)
systemctl freeze "$unit" || fail "systemctl freeze $unit"
wait_for 5 "$unit is suspended" worker_is default/1 suspended
wait_for 5 "the journal says so" told part-suspended
sleep 3
stays "while it is frozen"
worker_is default/1 suspended || fail "after 3 s it is $(worker_state default/1)"
systemctl thaw "$unit" || fail "systemctl thaw $unit"
wait_for 5 "$unit serves again" worker_serves default/1
wait_for 5 "the journal says so" told part-resumed
stays "after the thaw"

! words_since "$marked" PATOU_EVENT=part-killed | has . || fail "somebody was killed: $(words_since "$marked" PATOU_EVENT=part-killed)"

# Every worker of the pool has failed: clients hear it at once, and a reload starts them again.
{ configuration && printf '\n[watchdog]\nrestarts = { max = 2, within = "10m", delay = "10ms", delay_max = "10ms" }\n' && default_pool 2; } | configure
systemctl reload patou || fail "systemctl reload"
wait_for 10 "the set is up" all_up
marked=$(mark)
for unit in patou-worker@default-{1,2}.service; do
    until given_up "$unit"; do
        pid=$(main_pid "$unit")
        [ "$pid" = 0 ] || kill -KILL "$pid" 2>/dev/null || true
        wait_for 20 "$unit is started again or given up" replaced_or_given_up "$unit" "$pid"
    done
done
refused() { curl --silent --max-time 2 http://127.0.0.1:7286/x | has 'every worker of pool default has failed'; }
wait_for 5 "clients hear that the pool has failed" refused
words_since "$marked" PATOU_EVENT=pool-failed | has 'pool default' || fail "the journal does not say that the pool has failed"
systemctl reload patou || fail "systemctl reload"
wait_for 10 "the set is up again" all_up
wait_for 5 "clients are answered" answered_on_tcp
