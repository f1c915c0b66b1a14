# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# A suspended worker is not killed: in its sandbox and as an ordinary user the watchdog can read the kernel files that
# show the suspension, and a worker whose control group is frozen keeps its process (tests/overload.rs starves one). A
# pool whose workers have all failed refuses clients with the reason.
. /checks/lib.sh
ensure_started

unit=patou-worker@default-1.service
logged() { messages_since "$marked" "PATOU_EVENT=$1" PATOU_WORKER=default/1 | has .; }
same_process() { expect "the process of $unit $1" "$(main_pid "$unit")" "$pid"; }

# The sandbox lets the watchdog read these files.
watchdog=$(main_pid patou-watchdog.service)
pid=$(main_pid "$unit")
as_watchdog() {
    nsenter --target "$watchdog" --mount setpriv --reuid=patou-watchdog --regid=patou-watchdog --clear-groups "$@"
}
group=$(show "$unit" ControlGroup)
for file in /proc/pressure/memory /proc/pressure/io "/proc/$pid/status" "/proc/$pid/task/$pid/schedstat" \
    "/proc/$pid/cgroup" "/sys/fs/cgroup$group/cgroup.freeze"; do
    case $file in /proc/pressure/*) [ -e "$file" ] || continue ;; esac
    as_watchdog cat "$file" | has . || fail "$file cannot be read by the watchdog"
done

# A worker frozen by the administrator for longer than worker_timeout is suspended, and keeps its process.
marked=$(mark)
systemctl freeze "$unit" || fail "systemctl freeze $unit"
wait_for 5 "$unit is suspended" worker_is default/1 suspended
wait_for 5 "part-suspended is logged" logged part-suspended
sleep 3
same_process "while it is frozen"
worker_is default/1 suspended || fail "after 3 s its state is $(worker_state default/1)"
systemctl thaw "$unit" || fail "systemctl thaw $unit"
wait_for 5 "$unit serves again" worker_serves default/1
wait_for 5 "part-resumed is logged" logged part-resumed
same_process "after the thaw"

! messages_since "$marked" PATOU_EVENT=part-killed | has . || fail "a part was killed: $(messages_since "$marked" PATOU_EVENT=part-killed)"

# Every worker of the pool has failed: clients are refused at once, and a reload restarts the workers.
{ base_configuration && printf '\n[watchdog]\nrestarts = { max = 2, within = "10m", delay = "10ms", delay_max = "10ms" }\n' && default_pool 2; } | configure
systemctl reload patou || fail "systemctl reload"
wait_for 10 "the set is up" all_up
marked=$(mark)
for unit in patou-worker@default-{1,2}.service; do
    until unit_failed "$unit"; do
        pid=$(main_pid "$unit")
        [ "$pid" = 0 ] || kill -KILL "$pid" 2>/dev/null || true
        wait_for 20 "$unit is restarted or has failed" replaced_or_failed "$unit" "$pid"
    done
done
refused() { curl --silent --max-time 2 http://127.0.0.1:7286/x | has 'every worker of pool default has failed'; }
wait_for 5 "clients are refused because the pool has failed" refused
messages_since "$marked" PATOU_EVENT=pool-failed | has 'pool default' || fail "the journal has no record of the failed pool"
systemctl reload patou || fail "systemctl reload"
wait_for 10 "the set is up again" all_up
wait_for 5 "clients get responses" responds_on_tcp
