# shellcheck shell=bash source=SCRIPTDIR/../lib.sh disable=SC2016 # other shells expand these
# The statements of docs/SECURITY.md about hostile handlers, as far as a shell can test them.
. /checks/lib.sh
ensure_installed
mark_set_changed
useradd --system --no-create-home other 2>/dev/null || true
{
    base_configuration
    default_pool 2
    printf '\n[[listener]]\naddress = "127.0.0.1:7287"\npool = "apart"\n'
    printf '\n[[pool]]\nname = "apart"\nworkers = 1\naddress = "127.0.0.1:7390"\nuser = "other"\n'
    printf '\n[[listener]]\naddress = "127.0.0.1:7288"\npool = "hostile"\n'
    # Its handler runs the commands that clients send, in the unit and its sandbox.
    printf '\n[[pool]]\nname = "hostile"\nworkers = 1\naddress = "127.0.0.1:7395"\n'
    printf 'handler = { exec = ["sh", "-c", "printf '"'Content-Type: text/plain\\\\r\\\\n\\\\r\\\\n'"'; exec sh 2>&1"] }\n'
} | configure
install -d -m 0700 /etc/patou/secrets
install -m 0600 /dev/stdin /etc/patou/secrets/database <<<'the secret'
mkdir -p /etc/systemd/system/patou-worker@hostile-1.service.d
printf '[Service]\nLoadCredential=database:/etc/patou/secrets/database\n' \
    >/etc/systemd/system/patou-worker@hostile-1.service.d/secret.conf
systemctl daemon-reload
systemctl restart patou || fail "systemctl restart patou"
wait_for 20 "the set is up" all_up

run_as() { # USER COMMAND...
    local user=$1
    shift
    setpriv --reuid="$user" --regid="$user" --init-groups "$@"
}
segment() { printf '/dev/shm%s' "$(cat "/run/patou/${1%-*}/${1#*-}.segment")"; }

# The users of the parts, and their privileges.
expect "the dispatcher's user" "$(show patou-dispatcher User)" patou
expect "the watchdog's user" "$(show patou-watchdog User)" patou-watchdog
expect "a worker's user" "$(show patou-worker@default-1 User)" patou-worker
expect "the user of a pool with user =" "$(show patou-worker@apart-1 User)" other
capabilities() { awk '$1 == "CapEff:" { print $2 }' "/proc/$(main_pid "$1")/status"; }
expect "the dispatcher's capabilities" "$(capabilities patou-dispatcher)" 0000000000000000
expect "a worker's capabilities" "$(capabilities patou-worker@default-1)" 0000000000000000
groups() { awk '$1 == "Groups:" { $1 = ""; print }' "/proc/$(main_pid "$1")/status" | tr ' ' '\n' | sort -n | xargs; }
gids() { getent group "$@" | cut -d : -f 3 | sort -n | xargs; }
expect "the watchdog's groups" "$(groups patou-watchdog)" "$(gids patou-watchdog patou-worker other)"
expect "the watchdog's capabilities (CAP_KILL)" "$(capabilities patou-watchdog)" 0000000000000020

# Signals and traces: the other parts run as other users.
for part in patou-dispatcher patou-watchdog patou-worker@apart-1; do
    pid=$(main_pid "$part")
    expect_failure "kill -0 of $part as patou-worker" run_as patou-worker kill -0 "$pid"
    expect_failure "reading the memory map of $part as patou-worker" run_as patou-worker cat "/proc/$pid/maps"
done

# The same from within a handler, which has only what its unit permits.
hostile() { curl --silent --show-error --location --max-time 20 --data-binary "$1" http://127.0.0.1:7288/; }
denied() { # WHAT COMMANDS: the last command must fail
    local output
    output=$(hostile "($2) && echo SUCCEEDED; exit 0") || fail "$1: the hostile pool does not respond: $output"
    [[ "$output" != *SUCCEEDED* ]] || fail "a hostile handler can: $1: $output"
}
expect "the hostile handler's user" "$(hostile 'id -un')" patou-worker
expect "the secret of the handler" "$(hostile 'cat "$CREDENTIALS_DIRECTORY/database"')" "the secret"
denied "read the source of the secret" 'cat /etc/patou/secrets/database'
case $(uname -m) in
x86_64) ptrace=101 ;;
aarch64) ptrace=117 ;;
*) ptrace='' ;;
esac
# PTRACE_SEIZE, which does not stop the process. The sandbox must deny it: outside it the same command succeeds.
seize() { printf "perl -e 'exit(syscall(%s, 0x4206, %s, 0, 0) == 0 ? 0 : 1)'" "$ptrace" "$1"; }
child='sleep 5 & '$(seize '$ARGV[0] + 0')' $!'
[ -z "$ptrace" ] || sh -c "$child" || fail "ptrace does not work on this machine"
expect "perl within the sandbox" "$(hostile "perl -e 'print 1'")" 1
[ -z "$ptrace" ] || denied "trace its own child" "$child"
for part in patou-dispatcher patou-watchdog patou-worker@apart-1; do
    pid=$(main_pid "$part")
    denied "signal $part" "kill -0 $pid"
    denied "see $part" "ls -d /proc/$pid"
    [ -z "$ptrace" ] || denied "trace $part" "$(seize "$pid")"
done
# Workers of one user are not isolated from each other, as the page says.
expect "a signal to a worker of the same user" "$(hostile "kill -0 $(main_pid patou-worker@default-1) && echo permitted")" permitted
expect "the segment of a worker of the same user" "$(hostile ": <$(segment default-1) && echo permitted")" permitted
denied "open another user's segment" ": <$(segment apart-1)"
denied "ring the doorbell of another user" 'echo >>/run/patou/apart/1.wd'
denied "list another user's directory" 'ls /run/patou/apart'
denied "create a file next to the sockets" 'touch /run/patou/hostile-was-here'
denied "change the published configuration" 'echo >>/run/patou-applied/patou.toml'
denied "change the configuration" 'echo >>/etc/patou/patou.toml'
denied "drain a worker" 'patou drain default-1'
denied "change the system" 'touch /usr/bin/hostile-was-here || touch /etc/hostile-was-here'
denied "become root" 'setpriv --reuid=0 true'
# A process that it starts in a new session is killed with its worker.
sleeper=$(hostile 'setsid sleep 4711 >/dev/null 2>&1 & sleep 0.1; echo started')
expect "the output of the handler" "$sleeper" started
kill -KILL "$(main_pid patou-worker@hostile-1)"
wait_for 20 "the hostile worker has recovered" worker_serves hostile/1
no_sleeper() { ! pgrep -f 'sleep 4711'; }
wait_for 5 "the process left by a handler is killed with its worker" no_sleeper

# Segments and doorbells of a pool with another user, and the modes of the directories.
expect_failure "opening a segment of another user's pool" run_as patou-worker head -c 1 "$(segment apart-1)"
expect_failure "writing to a doorbell of another user's pool" run_as patou-worker sh -c 'echo >>/run/patou/apart/1.wd'
expect "the mode of /run/patou" "$(stat -c '%U:%G %a' /run/patou)" "patou:patou 751"
expect "the mode of a pool's directory" "$(stat -c '%U:%G %a' /run/patou/apart)" "patou:other 750"
expect "the mode of a segment" "$(stat -c '%U:%G %a' "$(segment apart-1)")" "patou:other 660"
expect "the mode of a doorbell" "$(stat -c '%U:%G %a' /run/patou/default/1.dw)" "patou:patou-worker 660"

# probe.sock: its mode refuses other users, and the dispatcher also checks the user of each peer.
expect_failure "patou drain as patou-worker" run_as patou-worker patou drain default-1
chmod 0666 /run/patou/probe.sock
expect_failure "patou drain as patou-worker, with an open mode" run_as patou-worker patou drain default-1
expect "the state of the worker, which must not be drained" "$(worker_state default/1)" idle
chmod 0660 /run/patou/probe.sock

# A worker truncates its segment, or fills it with random bytes: the dispatcher keeps running and the worker recovers.
dispatcher=$(main_pid patou-dispatcher)
for how in 'truncate -s 0 "$0"' 'truncate -s 100 "$0"' 'head -c 1024 /dev/urandom | dd of="$0" conv=notrunc status=none'; do
    systemctl reset-failed 'patou*' 2>/dev/null || true
    worker=$(main_pid patou-worker@default-1)
    load_start 2
    run_as patou-worker sh -c "$how" "$(segment default-1)" || fail "as patou-worker: $how"
    wait_for 20 "the worker is replaced after: $how" replaced patou-worker@default-1.service "$worker"
    wait_for 20 "the worker serves after: $how" worker_serves default/1
    load_stop
    expect "the dispatcher's process after: $how" "$(main_pid patou-dispatcher)" "$dispatcher"
    log "$how: $total requests, $failed failed"
done

# Its own segment, from within the sandbox.
worker=$(main_pid patou-worker@hostile-1)
hostile 'truncate -c -s 0 "/dev/shm$(cat /run/patou/hostile/1.segment)"; echo done' >/dev/null || true
wait_for 20 "the hostile worker is replaced" replaced patou-worker@hostile-1.service "$worker"
wait_for 20 "the hostile worker serves" worker_serves hostile/1
expect "the dispatcher's process" "$(main_pid patou-dispatcher)" "$dispatcher"

# The exposure of the sandboxes, as systemd rates it.
score() { systemd-analyze security --no-pager "$1" | awk '/Overall exposure/ { sub(/.*: /, ""); print $1 }'; }
for part in patou-watchdog:1.5 patou-dispatcher:1.5 patou-worker@default-1:2.5; do
    found=$(score "${part%:*}.service")
    figure "systemd-analyze security ${part%:*}: $found"
    awk -v found="$found" -v bound="${part#*:}" 'BEGIN { exit !(found != "" && found + 0 <= bound + 0) }' ||
        fail "${part%:*} has an exposure of $found, more than ${part#*:}"
done

rm -r /etc/systemd/system/patou-worker@hostile-1.service.d /etc/patou/secrets
systemctl daemon-reload
