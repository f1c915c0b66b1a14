# shellcheck shell=bash source=SCRIPTDIR/../lib.sh
# What a hostile handler cannot do: docs/SECURITY.md, sentence by sentence where a shell can try it.
. /checks/lib.sh
need_installed
forget_set
useradd --system --no-create-home other 2>/dev/null || true
{
    configuration
    default_pool 2
    printf '\n[[listener]]\naddress = "127.0.0.1:7287"\npool = "apart"\n'
    printf '\n[[pool]]\nname = "apart"\nworkers = 1\naddress = "127.0.0.1:7390"\nuser = "other"\n'
} | configure
systemctl restart patou || fail "systemctl restart patou"
wait_for 20 "the set is up" all_up

as() { # USER COMMAND...
    local user=$1
    shift
    setpriv --reuid="$user" --regid="$user" --init-groups "$@"
}
segment() { printf '/dev/shm%s' "$(cat "/run/patou/${1%-*}/${1#*-}.segment")"; }

# The users that the parts run as, and what they may do beyond.
expect "the dispatcher's user" "$(show patou-dispatcher User)" patou
expect "the watchdog's user" "$(show patou-watchdog User)" patou-watchdog
expect "a worker's user" "$(show patou-worker@default-1 User)" patou-worker
expect "the user of a pool with one" "$(show patou-worker@apart-1 User)" other
capabilities() { awk '$1 == "CapEff:" { print $2 }' "/proc/$(main_pid "$1")/status"; }
expect "the dispatcher's capabilities" "$(capabilities patou-dispatcher)" 0000000000000000
expect "a worker's capabilities" "$(capabilities patou-worker@default-1)" 0000000000000000
expect "the watchdog's capabilities (CAP_KILL)" "$(capabilities patou-watchdog)" 0000000000000020

# Signal, trace: the other parts are other users.
for part in patou-dispatcher patou-watchdog patou-worker@apart-1; do
    pid=$(main_pid "$part")
    expect_failure "kill -0 of $part as patou-worker" as patou-worker kill -0 "$pid"
    expect_failure "reading the memory map of $part as patou-worker" as patou-worker cat "/proc/$pid/maps"
done

# Segments and pipes of another pool with another user; the directories say so too.
expect_failure "opening a segment of another user's pool" as patou-worker head -c 1 "$(segment apart-1)"
expect_failure "writing to a pipe of another user's pool" as patou-worker sh -c 'echo >>/run/patou/apart/1.wd'
expect "the mode of /run/patou" "$(stat -c '%U:%G %a' /run/patou)" "patou:patou 751"
expect "the mode of a pool's directory" "$(stat -c '%U:%G %a' /run/patou/apart)" "patou:other 750"
expect "the mode of a segment" "$(stat -c '%U:%G %a' "$(segment apart-1)")" "patou:other 660"
expect "the mode of a pipe" "$(stat -c '%U:%G %a' /run/patou/default/1.dw)" "patou:patou-worker 660"

# probe.sock: the file's mode keeps strangers out, and who gets past it is asked for his user.
expect_failure "patou drain as patou-worker" as patou-worker patou drain default-1
chmod 0666 /run/patou/probe.sock
expect_failure "patou drain as patou-worker, past the mode" as patou-worker patou drain default-1
expect "the state of the worker that was to be drained" "$(worker_state default/1)" idle
chmod 0660 /run/patou/probe.sock

# A worker cuts its own segment, or fills it with garbage: the dispatcher stays what it is and the worker comes back.
dispatcher=$(main_pid patou-dispatcher)
for how in 'truncate -s 0 "$0"' 'truncate -s 100 "$0"' 'head -c 1024 /dev/urandom | dd of="$0" conv=notrunc status=none'; do
    systemctl reset-failed 'patou*' 2>/dev/null || true
    worker=$(main_pid patou-worker@default-1)
    loop_curl 2
    as patou-worker sh -c "$how" "$(segment default-1)" || fail "as patou-worker: $how"
    wait_for 20 "the worker is replaced after: $how" replaced patou-worker@default-1.service "$worker"
    wait_for 20 "the worker serves after: $how" worker_serves default/1
    load_stop
    expect "the dispatcher's process after: $how" "$(main_pid patou-dispatcher)" "$dispatcher"
    say "$how: $total requests, $failed failed"
done

# What systemd thinks of the sandboxes.
score() { systemd-analyze security --no-pager "$1" | awk '/Overall exposure/ { sub(/.*: /, ""); print $1 }'; }
for part in patou-watchdog:1.5 patou-dispatcher:1.5 patou-worker@default-1:2.5; do
    found=$(score "${part%:*}.service")
    figure "systemd-analyze security ${part%:*}: $found"
    awk -v found="$found" -v bound="${part#*:}" 'BEGIN { exit !(found != "" && found + 0 <= bound + 0) }' ||
        fail "${part%:*} has an exposure of $found, more than ${part#*:}"
done
