# shellcheck shell=bash source=SCRIPTDIR/../lib.sh disable=SC2016 # what others are to expand
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
    printf '\n[[listener]]\naddress = "127.0.0.1:7288"\npool = "hostile"\n'
    # Runs what clients send, in the unit and in its sandbox.
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
groups() { awk '$1 == "Groups:" { $1 = ""; print }' "/proc/$(main_pid "$1")/status" | tr ' ' '\n' | sort -n | xargs; }
gids() { getent group "$@" | cut -d : -f 3 | sort -n | xargs; }
expect "the watchdog's groups" "$(groups patou-watchdog)" "$(gids patou-watchdog patou-worker other)"
expect "the watchdog's capabilities (CAP_KILL)" "$(capabilities patou-watchdog)" 0000000000000020

# Signal, trace: the other parts are other users.
for part in patou-dispatcher patou-watchdog patou-worker@apart-1; do
    pid=$(main_pid "$part")
    expect_failure "kill -0 of $part as patou-worker" as patou-worker kill -0 "$pid"
    expect_failure "reading the memory map of $part as patou-worker" as patou-worker cat "/proc/$pid/maps"
done

# The same from within, where the handler of a worker is: it has no more than its unit gives it.
hostile() { curl --silent --show-error --location --max-time 20 --data-binary "$1" http://127.0.0.1:7288/; }
refused() { # WHAT COMMANDS: the last of them must fail
    local said
    said=$(hostile "($2) && echo WENT-WELL; exit 0") || fail "$1: the hostile pool does not answer: $said"
    [[ "$said" != *WENT-WELL* ]] || fail "a hostile handler can: $1: $said"
}
expect "the hostile handler's user" "$(hostile 'id -un')" patou-worker
expect "what it is given as a secret" "$(hostile 'cat "$CREDENTIALS_DIRECTORY/database"')" "the secret"
refused "read where the secret comes from" 'cat /etc/patou/secrets/database'
case $(uname -m) in
x86_64) ptrace=101 ;;
aarch64) ptrace=117 ;;
*) ptrace='' ;;
esac
# PTRACE_SEIZE, which stops nobody. What refuses it must be the sandbox: outside the same words succeed.
seize() { printf "perl -e 'exit(syscall(%s, 0x4206, %s, 0, 0) == 0 ? 0 : 1)'" "$ptrace" "$1"; }
child='sleep 5 & '$(seize '$ARGV[0] + 0')' $!'
[ -z "$ptrace" ] || sh -c "$child" || fail "ptrace does not work here at all"
expect "perl within the sandbox" "$(hostile "perl -e 'print 1'")" 1
[ -z "$ptrace" ] || refused "trace its own child" "$child"
for part in patou-dispatcher patou-watchdog patou-worker@apart-1; do
    pid=$(main_pid "$part")
    refused "signal $part" "kill -0 $pid"
    refused "see $part" "ls -d /proc/$pid"
    [ -z "$ptrace" ] || refused "trace $part" "$(seize "$pid")"
done
# What the page does not promise: workers of one user are not protected from each other.
expect "a signal to a worker of the same user" "$(hostile "kill -0 $(main_pid patou-worker@default-1) && echo may")" may
expect "the segment of a worker of the same user" "$(hostile ": <$(segment default-1) && echo may")" may
refused "open another user's segment" ": <$(segment apart-1)"
refused "ring another user's bell" 'echo >>/run/patou/apart/1.wd'
refused "list another user's directory" 'ls /run/patou/apart'
refused "make a file beside the sockets" 'touch /run/patou/hostile-was-here'
refused "change what the set runs on" 'echo >>/run/patou-applied/patou.toml'
refused "change the configuration" 'echo >>/etc/patou/patou.toml'
refused "give the dispatcher an order" 'patou drain default-1'
refused "change the system" 'touch /usr/bin/hostile-was-here || touch /etc/hostile-was-here'
refused "become root" 'setpriv --reuid=0 true'
# What it starts in a session of its own goes with its worker.
sleeper=$(hostile 'setsid sleep 4711 >/dev/null 2>&1 & sleep 0.1; echo started')
expect "what the handler says" "$sleeper" started
kill -KILL "$(main_pid patou-worker@hostile-1)"
wait_for 20 "the hostile worker is back" worker_serves hostile/1
no_sleeper() { ! pgrep -f 'sleep 4711'; }
wait_for 5 "what a handler left goes with its worker" no_sleeper

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

# Its own segment, from within the sandbox.
worker=$(main_pid patou-worker@hostile-1)
hostile 'truncate -c -s 0 "/dev/shm$(cat /run/patou/hostile/1.segment)"; echo done' >/dev/null || true
wait_for 20 "the hostile worker is replaced" replaced patou-worker@hostile-1.service "$worker"
wait_for 20 "the hostile worker serves" worker_serves hostile/1
expect "the dispatcher's process" "$(main_pid patou-dispatcher)" "$dispatcher"

# What systemd thinks of the sandboxes.
score() { systemd-analyze security --no-pager "$1" | awk '/Overall exposure/ { sub(/.*: /, ""); print $1 }'; }
for part in patou-watchdog:1.5 patou-dispatcher:1.5 patou-worker@default-1:2.5; do
    found=$(score "${part%:*}.service")
    figure "systemd-analyze security ${part%:*}: $found"
    awk -v found="$found" -v bound="${part#*:}" 'BEGIN { exit !(found != "" && found + 0 <= bound + 0) }' ||
        fail "${part%:*} has an exposure of $found, more than ${part#*:}"
done

rm -r /etc/systemd/system/patou-worker@hostile-1.service.d /etc/patou/secrets
systemctl daemon-reload
